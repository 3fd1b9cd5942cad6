"""Look at the files of a model without loading them: is a file whole, and what tensors does it hold?

A download that was cut off, a pointer of Git LFS or a sign-in page in place of the weights: each is told apart from the
first bytes and the size, and said with the file, the reason and what to do. Neither torch nor safetensors is imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

T = TypeVar("T")
_MOST_HEADER_BYTES: Final = 100_000_000
"""What the safetensors format allows."""
_HEAD_BYTES: Final = 512
_BITS: Final = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "C64": 64}
"""Of the types whose name does not say it in digits at the end."""
_AGAIN: Final = "fetch it again"


class ModelError(Exception):
    """A model cannot be found or used; the text says how to get it."""


class Stored(msgspec.Struct, frozen=True):
    """One tensor as the header of its file has it."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def damage(path: Path) -> str | None:
    """Say what stands in a file instead of what was to be downloaded; None if nothing of the kind does."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return f"{path} is empty: {_AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS and not the file itself: run `git lfs pull` there, or {_AGAIN}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"{path} is a web page and not the file itself (a sign-in or error page was saved): {_AGAIN}"
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; a file that is not there counts as empty. Raises ModelError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    words = damage(path)
    if words is not None:
        raise ModelError(words)
    try:
        found = json.loads(content.decode("utf-8"))  # from bytes it would guess, and read what transformers does not
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}): it was cut off or edited; {_AGAIN}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object but {type(found).__name__}: {_AGAIN}")
    return cast("dict[str, Any]", found)


def write_json_object(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as `read_json_object` reads it."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def entry(content: dict[str, Any], name: str, kind: type[T], path: Path) -> T:
    """Return an entry of a JSON object; empty if there is none, or null. Raises ModelError if it is of another type."""
    found = content.get(name)
    try:
        return kind() if found is None else msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {name} is not what it should be ({error}); fetch it again") from None


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file, having compared them with the file's size. Raises ModelError."""
    words = damage(path)
    if words is not None:
        raise ModelError(words)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER_BYTES or size < 8:
            raise ModelError(f"{path} is no safetensors file ({_first_bytes(path)}): {_AGAIN}")
        if 8 + length > size:
            raise ModelError(f"{path} ends within its header, after {size:,} bytes: it was cut off; {_AGAIN}")
        tensors = _decode(path, file.read(length))
    end = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size != end:
        what = "it was cut off" if size < end else "bytes follow the last tensor"
        raise ModelError(f"{path} has {size:,} bytes, but its header speaks of {end:,}: {what}; {_AGAIN}")
    if not tensors:
        raise ModelError(f"{path} holds no tensors: {_AGAIN}")
    return tensors


def _decode(path: Path, header: bytes) -> dict[str, Stored]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(tensor, type=Stored) for name, tensor in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ModelError(f"{path} is no safetensors file ({_first_bytes(path)}): {_AGAIN}") from None
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda pair: pair[1].data_offsets):
        begin, end = tensor.data_offsets
        if begin != at or (end - begin) * 8 != _bits(tensor):
            raise ModelError(f"{path}: the tensor {name} does not lie where its shape says; {_AGAIN}")
        at = end
    return tensors


def _bits(tensor: Stored) -> int:
    name = tensor.dtype
    size = _BITS.get(name) or (8 if name.startswith("F8") else int("".join(filter(str.isdigit, name)) or 0))
    for length in tensor.shape:
        size *= length
    return size


def _first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    return "it is all zeros" if not any(head) else f"it begins with {head!r}"
