"""Small models that are not what they say: copies of the tiny model, changed in one place, in milliseconds, no torch.

`broken = copy(tiny_model(folder), folder / "broken")`, then `drop(broken, "model.norm.weight")` and the like.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

LFS_POINTER: Final = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345678\n"
)
HTML_PAGE: Final = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
JSON_ERROR: Final = b'{"error":"Repository Not Found","message":"Invalid username or password."}'
NOT_MODELS: Final = {
    "empty": b"",
    "lfs": LFS_POINTER,
    "html": HTML_PAGE,
    "json": JSON_ERROR,
    "zeros": bytes(4096),
}
"""What stands in a file instead of what was to be downloaded."""

NAN_BF16: Final = b"\xc0\x7f"
INFINITY_BF16: Final = b"\x80\x7f"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a safetensors file, as it lies there."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


Tensors = dict[str, Stored]


def copy(source: Path, place: Path) -> Path:
    """Copy a model's directory, to be broken."""
    shutil.copytree(source, place)
    return place


def edit_json(path: Path, **changes: object) -> None:
    """Change the top level of a JSON file; one that is not there begins empty."""
    content = cast("dict[str, Any]", json.loads(path.read_bytes())) if path.exists() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def truncate(path: Path, share: float = 0.5) -> None:
    """Keep the beginning of a file, as a download does that was cut off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def read_tensors(path: Path) -> Tensors:
    """Read a safetensors file by hand."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = cast("dict[str, Any]", json.loads(content[8 : 8 + length]))
    body = content[8 + length :]
    return {
        name: Stored(entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file by hand: whatever is asked for, however little sense it makes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, one in tensors.items():
        end = begin + len(one.content)
        header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(one.content for one in tensors.values()))


def change(model: Path, how: Callable[[Tensors], object]) -> None:
    """Let `how` change the tensors of a directory that has one file of them."""
    tensors = read_tensors(model / WEIGHTS)
    how(tensors)
    write_tensors(model / WEIGHTS, tensors)


def drop(model: Path, *names: str) -> None:
    """Take tensors out."""
    change(model, lambda tensors: [tensors.pop(name) for name in names])


def add(model: Path, name: str, shape: tuple[int, ...], *, dtype: str = "BF16") -> None:
    """Put in a tensor (of zeros) that the configuration knows nothing of."""
    size = 1 if dtype in {"I8", "U8", "F8_E4M3"} else 4 if dtype == "F32" else 2
    for length in shape:
        size *= length
    change(model, lambda tensors: tensors.update({name: Stored(dtype, shape, bytes(size))}))


def fill(model: Path, name: str, two_bytes: bytes, *, every: bool = True) -> None:
    """Overwrite a bfloat16 tensor, all of it or its first number, with NaN, infinity or zero."""

    def overwrite(tensors: Tensors) -> None:
        old = tensors[name]
        content = two_bytes * (len(old.content) // 2) if every else two_bytes + old.content[2:]
        tensors[name] = Stored(old.dtype, old.shape, content)

    change(model, overwrite)


def shard(model: Path, count: int = 2) -> list[Path]:
    """Cut the weights into several files with an index; return the files."""
    tensors = read_tensors(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    files = [model / f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    places = {name: files[at % count] for at, name in enumerate(tensors)}
    for file in files:
        write_tensors(file, {name: one for name, one in tensors.items() if places[name] == file})
    total = sum(len(one.content) for one in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": {name: file.name for name, file in places.items()}}
    (model / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return files


def enlarge(model: Path, rows: int) -> None:
    """Let the last tensor have so many rows of a mebi of numbers, of which no byte is on the disk."""
    path, width = model / WEIGHTS, 1 << 20
    tensors = read_tensors(path)
    name, last = tensors.popitem()
    write_tensors(path, tensors | {name: Stored(last.dtype, (rows, width), b"")})
    begin = sum(len(tensor.content) for tensor in tensors.values())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = cast("dict[str, Any]", json.loads(content[8 : 8 + length]))
    header[name]["data_offsets"] = [begin, begin + 2 * rows * width]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    os.truncate(path, 8 + len(text) + begin + 2 * rows * width)
