"""`zmqrt classify`: which label a model gives to a text, or to each line of a file."""

from __future__ import annotations

from typing import Final

import click

from ...protocol.settings import options
from ..config import ClientSettings
from ..sync import Client
from .generation import naming_the_flag
from .stdio import answer, data, read_prompt
from .text_lines import read_texts

_BATCH: Final = 256
"""Texts of one request."""


@click.command(
    help="Say which label a model gives to a text, and how sure it is.",
    epilog="TEXT may be - or left out, to read it from a pipe. --file takes one text a line; see `zmqrt embed`.",
)
@click.argument("text", required=False)
@click.option("-f", "--file", metavar="FILE", help="Texts, one a line; - for a pipe.")
@click.option("-m", "--model", metavar="NAME", help="Model to ask; see `zmqrt models`.")
@click.option("--truncate", is_flag=True, help="Cut off what is too long for the model, instead of refusing it.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each text.")
@options(ClientSettings)
def command(
    settings: ClientSettings,
    *,
    text: str | None,
    file: str | None,
    model: str | None,
    truncate: bool,
    as_json: bool,
) -> None:
    """Ask, and print: of one text all labels, of a file the likeliest for each line."""
    if text is not None and file is not None:
        raise click.UsageError("a text is given as an argument or by --file, not both")
    texts = [read_prompt(text)] if file is None else read_texts(file)
    with naming_the_flag(), Client.from_settings(settings, name="zmqrt classify") as client:
        found = [
            labels
            for at in range(0, len(texts), _BATCH)
            for labels in client.classify(texts[at : at + _BATCH], truncate=truncate, model=model)
        ]
    for one, labels in zip(texts, found, strict=True):
        if as_json:
            data({"text": one, "labels": labels})
        elif file is None:
            for label, probability in labels.items():
                answer(f"{probability:.4f}  {label}")
        else:
            likeliest = next(iter(labels))
            answer(f"{labels[likeliest]:.4f}  {likeliest}  {one}")
