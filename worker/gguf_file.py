"""Read a GGUF file: its metadata at once, its tensors where they lie. Knows nothing of models.

The layout (GGUF 2 and 3, little-endian): magic, version, count of tensors, count of values; the values (key, type,
value); the tensors' names, shapes, types and offsets; then, aligned, their bytes. The gguf package reads the same, but
spends two seconds on the 98,000 strings of a vocabulary; here its tables and its dequantisation are used.
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from .model_error import ModelError
from .safetensors_file import damage

if TYPE_CHECKING:
    from .weights import FloatArray

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_ALIGNMENT: Final = 32
_MOST_ALIGNMENT: Final = 1 << 20
_MOST_NESTED: Final = 4
"""Arrays within arrays; nothing that describes a model needs two."""
_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS: Final = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor; `shape` is in numpy's order, rows first."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], FloatArray]
    """Dequantises to float32."""


class _Stored(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(slots=True)
class GgufFile:
    """What a file holds."""

    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    tensors: list[GgufTensor] = field(default_factory=list[GgufTensor])

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - values are of every type
        """Return a value of the metadata."""
        return self.metadata.get(key, default)


def read_gguf(path: Path, progress: Callable[[float], None]) -> GgufFile:
    """Read a file's metadata and map its tensors. Raises ModelError."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a .gguf file needs the gguf package: pip install 'zmqrt[models]'")
    words = damage(path)
    if words is not None:
        raise ModelError(words)
    try:
        with path.open("rb") as opened:
            content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return _read(content, progress)
    except (ValueError, OSError, ArithmeticError, struct.error, KeyError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path} is not a readable GGUF file: {error}; fetch it again") from error


def _read(content: mmap.mmap, progress: Callable[[float], None]) -> GgufFile:
    cursor = _Cursor(content)
    if cursor.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise ValueError("its numbers are big-endian, and only little-endian files are read")
        raise ValueError(f"its version is {version}, known are {_VERSIONS}")
    tensor_count, value_count = cursor.scalar("Q"), cursor.scalar("Q")
    file = GgufFile()
    for index in range(value_count):
        key = cursor.string()
        file.metadata[key] = cursor.value(cursor.scalar("I"))
        progress(100.0 * (index + 1) / value_count)
    stored = [cursor.stored_tensor() for _ in range(tensor_count)]
    alignment = file.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MOST_ALIGNMENT:
        raise ValueError(f"general.alignment is {alignment!r}")
    twice = [name for name, times in Counter(tensor.name for tensor in stored).items() if times > 1]
    if twice:
        raise ValueError(f"the tensor {twice[0]} is in it twice")
    begin = -(-cursor.offset // alignment) * alignment
    file.tensors = [_tensor(content, begin, tensor) for tensor in stored]
    return file


def _tensor(content: mmap.mmap, begin: int, stored: _Stored) -> GgufTensor:
    import gguf
    import numpy as np

    try:
        quantisation = gguf.GGMLQuantizationType(stored.kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    except (ValueError, KeyError):
        raise ValueError(f"the tensor {stored.name} is of type {stored.kind}, which the gguf package lacks") from None
    if stored.shape[-1] % block or not all(stored.shape):
        raise ValueError(f"the tensor {stored.name} has the shape {stored.shape}, which its type cannot have")
    rows, row_bytes = stored.shape[:-1], stored.shape[-1] // block * block_bytes
    size_bytes, offset = math.prod(rows) * row_bytes, begin + stored.offset
    if offset + size_bytes > len(content):
        raise ValueError(f"it ends within the tensor {stored.name}")

    def values() -> FloatArray:
        data = np.frombuffer(content, np.uint8, count=size_bytes, offset=offset)
        plain = {"F32": "float32", "F16": "float16"}.get(quantisation.name)
        array = data.view(plain).reshape(stored.shape) if plain else data.reshape(*rows, row_bytes)
        try:
            return cast("FloatArray", gguf.quants.dequantize(array, quantisation))
        except NotImplementedError:
            raise ModelError(f"the gguf package cannot dequantise {stored.name} ({quantisation.name})") from None

    return GgufTensor(stored.name, stored.shape, values)


class _Cursor:
    """Reads values one behind the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.offset = 0

    def take(self, size_bytes: int) -> bytes:
        """Take raw bytes."""
        taken = self._content[self.offset : self.offset + size_bytes]
        if len(taken) != size_bytes:
            raise ValueError(f"it ends after {len(self._content)} bytes, in the middle of its metadata")
        self.offset += size_bytes
        return taken

    def scalar(self, letter: str) -> Any:  # noqa: ANN401 - int, float or bool, as the letter says
        """Take one number, by its letter in `struct`."""
        (value,) = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))
        return value

    def string(self) -> str:
        """Take a length and so many bytes of UTF-8."""
        size_bytes = self.scalar("Q")
        self._look_ahead(size_bytes)
        return self.take(size_bytes).decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:  # noqa: ANN401 - values are of every type
        """Take one value of the metadata."""
        if depth > _MOST_NESTED:
            raise ValueError("its metadata are arrays within arrays without end")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"its metadata hold a value of type {kind}, which there is not")
            return self.scalar(_SCALARS[kind])
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            self._look_ahead(count)
            layout = f"<{count}{_SCALARS[inner]}"
            return list(struct.unpack(layout, self.take(struct.calcsize(layout))))
        return [self.value(inner, depth + 1) for _ in range(count)]

    def _look_ahead(self, count: int) -> None:
        """Refuse a count that the file cannot hold, before memory is asked for it."""
        if count > len(self._content) - self.offset:
            raise ValueError(f"it ends within an array of {count} values in its metadata")

    def stored_tensor(self) -> _Stored:
        """Take what says where a tensor lies; shapes are stored columns first."""
        name, dimensions = self.string(), self.scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name} has {dimensions} dimensions")
        shape = [self.scalar("Q") for _ in range(dimensions)]
        return _Stored(name, tuple(reversed(shape)), kind=self.scalar("I"), offset=self.scalar("Q"))
