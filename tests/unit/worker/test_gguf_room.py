"""A GGUF file that fits no device is refused before it is converted."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.gguf_files import split_gguf, write_gguf
from zmqrt.worker.gguf_room import check_room
from zmqrt.worker.memory_fit import DeviceMemory, ServingPlan
from zmqrt.worker.model_files import ModelError

PLAN = ServingPlan(dtype="float32", is_mapped=True)


def memory(size_bytes: int) -> DeviceMemory:
    """Describe a device that holds nothing."""
    return DeviceMemory(device="cpu", free_bytes=size_bytes, total_bytes=size_bytes)


def test_what_its_weights_take_when_they_are_converted_counts(tmp_path: Path) -> None:
    """As the type that is computed in; with enough room nothing is said."""
    path = tmp_path / "model.gguf"
    size = 4 * sum(tensor.size for tensor in write_gguf(path).values())
    check_room(path, PLAN, memory(size))

    with pytest.raises(ModelError, match="too little memory to load model"):
        check_room(path, PLAN, memory(size - 1))


def test_all_parts_of_a_model_count(tmp_path: Path) -> None:
    """Whichever of them is named."""
    size = 4 * sum(tensor.size for tensor in write_gguf(tmp_path / "whole.gguf").values())

    with pytest.raises(ModelError, match="too little memory to load model-00001-of-00002"):
        check_room(split_gguf(tmp_path, parts=2)[0], PLAN, memory(size - 1))
