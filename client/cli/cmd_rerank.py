"""`zmqrt rerank`: documents sorted by how well they answer a query."""

from __future__ import annotations

import sys

import click

from ...protocol.settings import options
from ..config import ClientSettings
from ..sync import Client
from .generation import naming_the_flag
from .stdio import answer, data
from .text_lines import read_texts


@click.command(
    help="Sort documents by how well they answer a query.",
    epilog="Without DOCUMENTS they are the lines of --file, or of what is piped in.",
)
@click.argument("query")
@click.argument("documents", nargs=-1)
@click.option("-f", "--file", metavar="FILE", help="Documents, one a line; - for a pipe; see `zmqrt embed`.")
@click.option("-n", "--top-n", type=click.IntRange(min=1), metavar="N", help="Print so many of the best.")
@click.option("-m", "--model", metavar="NAME", help="Model to ask; see `zmqrt models`.")
@click.option("--truncate", is_flag=True, help="Cut off what is too long for the model, instead of refusing it.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each, with its index from 0.")
@options(ClientSettings)
def command(
    settings: ClientSettings,
    *,
    query: str,
    documents: tuple[str, ...],
    file: str | None,
    top_n: int | None,
    model: str | None,
    truncate: bool,
    as_json: bool,
) -> None:
    """Ask, and print the best first: its score, and the document."""
    if documents and file:
        raise click.UsageError("documents are given as arguments or by --file, not both")
    if not documents and file is None and sys.stdin.isatty():
        raise click.UsageError("no documents; give them as arguments, by --file, or pipe them in, one a line")
    texts = list(documents) or read_texts(file or "-")
    with naming_the_flag(), Client.from_settings(settings, name="zmqrt rerank") as client:
        ranked = client.rerank(query, texts, top_n=top_n, truncate=truncate, model=model)
    for one in ranked:
        document = texts[one.index]
        if as_json:
            data({"index": one.index, "score": one.score, "document": document})
        else:
            answer(f"{one.score:.4f}  {document}")
