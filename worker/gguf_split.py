"""A GGUF model that comes in several files: find all of them, and put them together again.

`gguf-split` writes NAME-00001-of-00003.gguf and so on; each file says which part it is (`split.no`, `split.count`), the
first also has the metadata of the whole. Half of a model loads as well as all of it, so nothing less than all is taken.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .gguf_file import GgufFile, read_gguf
from .model_error import ModelError
from .model_look import enumerate_names
from .safetensors_file import damage

_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.IGNORECASE)
_KEY: Final = b"split.count"
_LOOK_BYTES: Final = 256 << 20
"""Metadata lie before the tensors, and no vocabulary fills so much; looking costs some milliseconds."""


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
