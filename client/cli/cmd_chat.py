"""`zmqrt chat`: a conversation in the terminal. Ctrl-C stops the answer; pressed at the prompt, it leaves."""

from __future__ import annotations

import contextlib
import importlib
import sys

import click

from ...protocol.errors import RequestError
from ...protocol.settings import options
from ..calls import GenerateOptions
from ..config import ClientSettings
from ..sync import Client
from .conversation import HELP, ChatCommand, Conversation, command_of
from .generation import SamplingFlags, naming_the_flag, sampling_options
from .stdio import answer, is_terminal, note


@click.command(help="Talk with a model; it remembers the conversation.", epilog=HELP)
@click.option("--system", metavar="TEXT", help="What the model is told beforehand.")
@sampling_options
@options(ClientSettings)
def command(settings: ClientSettings, sampling: SamplingFlags, system: str | None) -> None:
    """Read a line, answer it, until there is no more."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() history and editing
    conversation = Conversation(system)
    with Client.from_settings(settings, name="zmqrt chat") as client:
        if is_terminal():
            click.secho(f"Connected to {client.endpoint}. {HELP}", dim=True, err=True)
        while (line := _read_line()) is not None:
            if not _obeyed(line, conversation):
                return
            if line.strip() and not line.lstrip().startswith("/"):
                _answer(client, conversation, line, sampling.options())


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _obeyed(line: str, conversation: Conversation) -> bool:
    """Do what an order says; False when it says to leave."""
    try:
        order = command_of(line)
    except ValueError as error:
        note(str(error))
        return True
    if order is ChatCommand.HELP:
        click.echo(HELP, err=True)
    if order is ChatCommand.RESET:
        conversation.reset()
        click.echo("The conversation is forgotten.", err=True)
    return order is not ChatCommand.EXIT


def _answer(client: Client, conversation: Conversation, line: str, asked: GenerateOptions) -> None:
    said: list[str] = []
    asked["messages"] = conversation.ask(line)
    try:
        with naming_the_flag(), client.stream(**asked) as stream:
            for chunk in stream:
                said.append(chunk.text)
                answer(chunk.text, nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    except RequestError as error:  # a conversation outlives one bad answer
        note(f"error: {error}")
    click.echo()
    conversation.answered("".join(said))
