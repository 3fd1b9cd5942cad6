"""Sets values in a settings file that people write too: their lines, order and comments stay.

The file is edited as text, and what came out is read again: where the two do not agree, nothing is written.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ...protocol.errors import ConfigurationError
from ...protocol.file_edits import alone, replace_text
from ...protocol.own_files import read_text

Values = Mapping[str, Mapping[str, str | list[str]]]
_TABLE: Final = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?")


def set_values(path: Path, values: Values) -> None:
    """Set values by table and key. Raises ConfigurationError naming what to write by hand."""
    with alone(path.parent):
        try:
            before = read_text(path)
        except FileNotFoundError:
            before = ""
        after = with_values(before, values)
        if not _is_right(before, after, values):
            lines = "; ".join(
                f"[{table}] {_line(key, value)}" for table, keys in values.items() for key, value in keys.items()
            )
            raise ConfigurationError(f"{path} is written in a way that cannot be edited; set there yourself: {lines}")
        replace_text(path, after, mode=0o600)


def with_values(text: str, values: Values) -> str:
    """Return the text of a file with values set, each in place of one of its name."""
    lines = text.splitlines()
    for table, keys in values.items():
        if (begin := _find(lines, table)) is None:
            lines += [*([""] if lines else []), f"[{table}]"]
            begin = len(lines) - 1
        end = next((at for at in range(begin + 1, len(lines)) if _TABLE.fullmatch(lines[at])), len(lines))
        old = [line for line in lines[begin + 1 : end] if line.partition("=")[0].strip() not in keys]
        lines[begin + 1 : end] = [*(_line(key, value) for key, value in keys.items()), *old]
    return "\n".join(lines) + "\n"


def _find(lines: list[str], table: str) -> int | None:
    found = ((at, _TABLE.fullmatch(line)) for at, line in enumerate(lines))
    return next((at for at, match in found if match is not None and match[1].strip() == table), None)


def _line(key: str, value: str | list[str]) -> str:
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def _is_right(before: str, after: str, values: Values) -> bool:
    try:
        was, found = tomllib.loads(before), tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        return False
    expected = {**was, **{table: {**was.get(table, {}), **keys} for table, keys in values.items()}}
    return found == expected
