"""Texts from a file or a pipe, one a line; of JSON lines, each a string or an object with `text`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click
import msgspec

from ...protocol.own_files import decode


def read_texts(source: str) -> list[str]:
    """Return the texts of a file; of standard input for `-`.

    Raises:
        UsageError: it cannot be read, or a line is empty or no text: every line is one, and keeps its place.
    """
    try:
        given = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{source}: {error.strerror or error}") from None
    # By line feeds alone: other characters that some take for the end of a line may stand in a text.
    if not given:
        raise click.UsageError("there is no text in what is piped in" if source == "-" else f"{source} is empty")
    lines = decode(given, "replace").removesuffix("\n").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    texts = [_of_json(line) for line in lines] if source.endswith(".jsonl") else lines
    wrong = next((at for at, text in enumerate(texts, 1) if not text), None)
    if wrong is not None:
        expected = "a JSON string, or an object with a `text`," if source.endswith(".jsonl") else "a text"
        raise click.UsageError(f"{source}, line {wrong}: {expected} is meant, and not an empty one")
    return [text for text in texts if text]


def _of_json(line: str) -> str | None:
    try:
        value: object = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    text = cast("dict[str, object]", value).get("text") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
