"""Write the weights of a llama without torch: what its tensors are called, bfloat16, and safetensors tensor by tensor.

A safetensors file is the length of a JSON header (8 bytes, little-endian), the header (per tensor: type, shape, first
and last byte), and the tensors' bytes. Shapes are known beforehand, so one tensor at a time is in memory; the library's
`save_file` and `serialize_file` want all of them at once, and numpy has no bfloat16 for it (docs/adr/0012).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float32]

_BF16_BYTES: Final = 2
_ALIGN_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """One tensor of the file: its float32 values are made when their turn comes."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], FloatArray]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return _BF16_BYTES * math.prod(self.shape)


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a llama as transformers names them (all end in ".weight"), with their shapes, in order.

    `config` is a config.json. A head that is not tied is left out.
    """
    width, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (query, width),
        "self_attn.k_proj": (key, width),
        "self_attn.v_proj": (key, width),
        "self_attn.o_proj": (width, query),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{part}.weight": shape for part, shape in layer.items()}
    return shapes | {"model.norm.weight": (width,)}


def to_bfloat16(values: FloatArray) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16 (nearest, ties to even) and return the bits. Weights are finite: NaN is not kept."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounding = (bits >> np.uint32(16) & np.uint32(1)) + np.uint32(0x7FFF)
    return ((bits + rounding) >> np.uint32(16)).astype(np.uint16)


def write_safetensors(path: Path, entries: Iterable[WeightEntry], progress: Callable[[float], None]) -> None:
    """Write tensors as bfloat16; `progress` hears the percentage after each."""
    entries = list(entries)
    header = _header(entries)
    total_bytes, written_bytes = sum(entry.size_bytes for entry in entries), 0
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for entry in entries:
            bits = to_bfloat16(entry.values())
            assert bits.shape == entry.shape, f"{entry.name} is {bits.shape}, announced as {entry.shape}"
            file.write(bits.data)
            written_bytes += entry.size_bytes
            progress(100.0 * written_bytes / total_bytes)
        file.flush()
        os.fsync(file.fileno())  # the rename that follows must not survive a power cut that the bytes do not


def _header(entries: list[WeightEntry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        end = begin + entry.size_bytes
        header[entry.name] = {"dtype": "BF16", "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % _ALIGN_BYTES)
