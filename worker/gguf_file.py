"""Read a model from a GGUF file, or from all those that it is split over: metadata at once, tensors where they lie.

The layout (GGUF 2 and 3, little-endian): magic, version, count of tensors, count of values; the values (key, type,
value); the tensors' names, shapes, types and offsets; then, aligned, their bytes. The gguf package reads the same, but
takes 28 times as long and trusts the file's counts (docs/adr/0012); here its tables and its dequantisation are used.

`gguf-split` writes NAME-00001-of-00003.gguf and so on; each file says which part it is (`split.no`, `split.count`), the
first also has the metadata of the whole. Half of a model loads as well as all of it, so nothing less than all is taken.
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from .model_directory import enumerate_names
from .model_files import ModelError, damage

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
_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.IGNORECASE)
_KEY: Final = b"split.count"
_LOOK_BYTES: Final = 256 << 20
"""Metadata lie before the tensors, and no vocabulary fills so much; looking costs some milliseconds."""


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


# --- a model in several files -----------------------------------------------------------------------------------------


def find_parts(path: Path) -> list[Path]:
    """Return all files of the model that `path` is one of, in order. Raises ModelError if one is missing."""
    words = damage(path)
    if words is not None:
        raise ModelError(words)
    if not _mentions_parts(path):
        return [path]
    file = read_gguf(path, lambda _percent: None)
    count = _whole(file, "split.count", path)
    if count <= 1:
        return [path]
    name = _NAME.fullmatch(path.stem)
    if name is None or int(name["count"]) != count:
        number = _whole(file, "split.no", path) + 1
        wanted = f"NAME-{number:05}-of-{count:05}.gguf"
        raise ModelError(f"{path} is part {number} of {count} of a model; name it {wanted}, beside the others")
    parts = [path.with_name(f"{name['stem']}-{at + 1:05}-of-{count:05}{path.suffix}") for at in range(count)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelError(
            f"{path} is one of {count} files of a model, and {enumerate_names(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not beside it: fetch all of them"
        )
    return parts


def read_parts(parts: list[Path], progress: Callable[[float], None]) -> GgufFile:
    """Read one model out of all its files. Raises ModelError if they are not of one model."""
    whole = read_gguf(parts[0], progress)
    if len(parts) == 1:
        return whole
    for at, part in enumerate(parts):
        file = whole if at == 0 else read_gguf(part, lambda _percent: None)
        found = _whole(file, "split.no", part), _whole(file, "split.count", part)
        if found != (at, len(parts)):
            raise ModelError(f"{part} says that it is part {found[0] + 1} of {found[1]}: it has another file's name")
        if at > 0:
            whole.tensors += file.tensors
    promised = whole.get("split.tensors.count")
    if promised is not None and promised != len(whole.tensors):
        raise ModelError(
            f"{parts[0]} and the files beside it hold {len(whole.tensors)} tensors, not the {promised} that they "
            "should: they are not of one model; fetch all of them again"
        )
    return whole


def _mentions_parts(path: Path) -> bool:
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_KEY, 0, _LOOK_BYTES) >= 0


def _whole(file: GgufFile, key: str, path: Path) -> int:
    value = file.get(key, 1 if key == "split.count" else 0)
    if not isinstance(value, int) or not 0 <= value <= 0xFFFF:
        raise ModelError(f"{path}: {key} is {value!r}, which is no number of a part")
    return value
