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
from .stdio import data, note
from .text import count_of, screen, took
from .text_lines import read_texts
from .vector_files import SUFFIXES, Write, to_row, vector_file

IN_FLIGHT: Final = 16
"""Requests that are not answered yet. An engine may work at all of them at once and end none before the others, and
inside one nothing tells of progress: so all that is under way has to be done within the time of one request."""
_AT_FAULT: Final = (ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_EXCEEDED, ErrorKind.MODEL_RAISED, ErrorKind.TOO_LARGE)
"""What one text can cause: its neighbours in a request are asked again without it, and it is named by its line."""


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
@click.option("--dimensions", type=int, metavar="N", help="Numbers of each vector, where the model can give fewer.")
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
    with naming_the_flag(), Client.from_settings(settings, name="zmqrt embed") as client:
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
        some = texts[at : at + batch]
        under_way.append(_Part(at + 1, some, _submit(client, some, ask)))
        if len(under_way) >= IN_FLIGHT:
            yield from _vectors(client, under_way.popleft(), ask)
    while under_way:
        yield from _vectors(client, under_way.popleft(), ask)


def _submit(client: Client, texts: Sequence[str], ask: _Asked) -> Handle[Embeddings]:
    task = Embed(input=list(texts), dimensions=ask.dimensions, truncate=ask.truncate)
    return client.submit_task(task, model=ask.model)


def _vectors(client: Client, part: _Part, ask: _Asked) -> list[array[float]]:
    """Wait for a part. If it fails for what stands in it, ask for each line alone, to name the one that is at fault."""
    try:
        return part.handle.result().vectors
    except RequestError as error:
        if len(part.texts) == 1:
            raise _at_line(part.first, error) from None
        if error.kind not in _AT_FAULT:
            raise
    alone = [_Part(at, [text], _submit(client, [text], ask)) for at, text in enumerate(part.texts, part.first)]
    return [vector for one in alone for vector in _vectors(client, one, ask)]


def _at_line(number: int, error: RequestError) -> RequestError:
    text = f"line {number}: {error.text}"
    return request_error(error.kind, text, request_id=error.request_id, resume_n=error.resume_n)
