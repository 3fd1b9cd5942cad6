"""`zmqrt embed`: a file of texts, one a line, into vectors; many requests at once, written in the order of lines."""

from __future__ import annotations

import contextlib
import time
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...protocol.errors import ErrorKind, RequestError, request_error
from ...protocol.settings import options
from ...protocol.tasks import Embed
from ..config import ClientSettings
from ..response import Embeddings
from ..sync import Client, Handle
from .generation import naming_the_flag
from .interrupts import signals_interrupt
from .stdio import data, note
from .text import count_of, screen, took
from .text_lines import read_texts
from .vector_files import SUFFIXES, Write, to_row, vector_file

IN_FLIGHT: Final = 16
"""Requests that are not answered yet. An engine may work at all of them at once and end none before the others, and
inside one nothing tells of progress: so all that is under way has to be done within the time of one request."""
_AT_FAULT: Final = (ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_EXCEEDED, ErrorKind.MODEL_RAISED, ErrorKind.TOO_LARGE)
"""What texts can cause: they are asked again in halves, until each has its vector, or one is named by its line."""


class _Asked(NamedTuple):
    """What is asked of each text."""

    model: str | None
    dimensions: int | None
    truncate: bool


@click.command(
    help="Turn the lines of a file into vectors: each line is one text.",
    epilog="FILE may be - for a pipe. In FILE.jsonl each line is a JSON string, or an object with `text`.",
)
@click.argument("file")
@click.option("-o", "--output", metavar="OUT", help="File to write, .npy or .jsonl [default: JSON lines to the pipe].")
@click.option("-m", "--model", metavar="NAME", help="Model to ask; see `zmqrt models`.")
@click.option(
    "--dimensions", type=click.IntRange(1), metavar="N", help="Numbers of each vector, where the model can give fewer."
)
@click.option("--truncate", is_flag=True, help="Cut off what is too long for the model, instead of refusing it.")
@click.option(
    "--batch", type=click.IntRange(1, 2048), default=16, show_default=True, metavar="N", help="Texts of one request."
)
@options(ClientSettings)
def command(
    settings: ClientSettings,
    *,
    file: str,
    output: str | None,
    model: str | None,
    dimensions: int | None,
    truncate: bool,
    batch: int,
) -> None:
    """Ask for all of them; a file that cannot be written whole is not written at all."""
    path = None if output in (None, "-") else Path(output or "")
    if path is not None and path.suffix not in SUFFIXES:
        raise click.UsageError(f"--output {path}: {' or '.join(SUFFIXES)} is meant; its suffix says what is written")
    texts = read_texts(file)
    ask = _Asked(model, dimensions, truncate)
    began_at = time.monotonic()
    with signals_interrupt(), naming_the_flag(), Client.from_settings(settings, name="zmqrt embed") as client:
        vectors = _embed_all(client, texts, ask, batch=batch)
        with vector_file(path, len(texts)) if path else contextlib.nullcontext(_print) as write:
            columns = _write(write, texts, vectors, shows_bar=path is not None)
    if path is not None:
        note(f"{path}: {count_of(len(texts), 'vector')} of {columns} numbers in {took(time.monotonic() - began_at)}")


def _print(text: str, vector: array[float]) -> None:
    data(to_row(text, vector))


def _write(write: Write, texts: Sequence[str], vectors: Iterator[array[float]], *, shows_bar: bool) -> int:
    """Write every vector, and show how many; return how many numbers the last one has."""
    columns = 0
    with _bar(len(texts), is_shown=shows_bar) as bar:
        for text, vector in zip(texts, vectors, strict=True):
            write(text, vector)
            columns = len(vector)
            bar.advance(bar.task_ids[0])
    return columns


@contextlib.contextmanager
def _bar(total: int, *, is_shown: bool) -> Generator[Progress]:
    console = screen(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    disable = not (is_shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        bar.add_task("embed", total=total)
        yield bar


# --- many in flight, one order ---------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Some lines that were asked for in one request; `first` is the number of the first, from 1."""

    first: int
    texts: Sequence[str]
    handle: Handle[Embeddings]


def _embed_all(client: Client, texts: Sequence[str], ask: _Asked, *, batch: int) -> Iterator[array[float]]:
    """Yield a vector for each text, in their order, with as many requests under way as are useful.

    Raises:
        RequestError: a text has none; the words begin with its line.
    """
    under_way: deque[_Part] = deque()
    for at in range(0, len(texts), batch):
        under_way += _submit(client, at + 1, texts[at : at + batch], ask)
        while len(under_way) >= IN_FLIGHT:
            yield from _vectors(client, under_way.popleft(), ask)
    while under_way:
        yield from _vectors(client, under_way.popleft(), ask)


def _submit(client: Client, first: int, texts: Sequence[str], ask: _Asked) -> list[_Part]:
    """Ask for some lines in one request; in several where it would be too large for one."""
    task = Embed(input=list(texts), dimensions=ask.dimensions, truncate=ask.truncate)
    try:
        return [_Part(first, texts, client.submit_task(task, model=ask.model))]
    except RequestError as error:
        return [part for half in _halves(first, texts, error) for part in _submit(client, *half, ask)]


def _vectors(client: Client, part: _Part, ask: _Asked) -> list[array[float]]:
    """Wait for a part; what fails for what stands in it is asked again in halves."""
    try:
        return part.handle.result().vectors
    except RequestError as error:
        halves = _halves(part.first, part.texts, error)
    again = [piece for half in halves for piece in _submit(client, *half, ask)]
    return [vector for piece in again for vector in _vectors(client, piece, ask)]


def _halves(first: int, texts: Sequence[str], error: RequestError) -> list[tuple[int, Sequence[str]]]:
    """Cut texts in two. Raises the error if that does not help, and names the line of a text that is alone."""
    if len(texts) == 1:
        text = f"line {first}: {error.text}"
        raise request_error(error.kind, text, request_id=error.request_id, resume_n=error.resume_n) from None
    if error.kind not in _AT_FAULT:
        raise error
    middle = len(texts) // 2
    return [(first, texts[:middle]), (first + middle, texts[middle:])]
