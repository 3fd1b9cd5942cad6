"""Is a GGUF file too large for every device of a node? Asked before it is converted: that takes minutes and a disk.

The converter writes bfloat16, whatever the file has; what free memory is left then is asked when it is loaded.
"""

from __future__ import annotations

import math
from pathlib import Path

from .gguf_file import find_parts, read_parts
from .memory_fit import DeviceMemory, ServingPlan, judge
from .model_directory import ModelDirectory
from .model_files import ModelError, Stored


def check_room(path: Path, plan: ServingPlan, memory: DeviceMemory) -> None:
    """Raise ModelError if the model of a file does not fit a device that holds nothing else."""
    file = read_parts(find_parts(path), lambda _percent: None)
    tensors = {tensor.name: Stored("BF16", tensor.shape, (0, 2 * math.prod(tensor.shape))) for tensor in file.tensors}
    verdict = judge(path.stem, ModelDirectory({}, tensors), plan, memory)
    if verdict.kind == "too_small":
        raise ModelError(verdict.words)
