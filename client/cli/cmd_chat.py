"""`zmqrt chat`: a conversation in the terminal. Ctrl-C stops the answer; pressed at the prompt, it leaves."""

from __future__ import annotations

import contextlib
import enum
import importlib
import sys
from dataclasses import dataclass, field

import click

from ...protocol.errors import RequestError
from ...protocol.settings import options
from ...protocol.tasks import ChatMessage
from ..calls import GenerateOptions
from ..config import ClientSettings
from ..sync import Client
from .generation import SamplingFlags, messages, naming_the_flag, sampling_options
from .stdio import answer, is_terminal, note


class ChatCommand(enum.Enum):
    """What a line beginning with / asks for."""

    EXIT = "/exit"
    RESET = "/reset"
    HELP = "/help"


HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


def command_of(line: str) -> ChatCommand | None:
    """Read a command; None for what is meant for the model. Raises ValueError for an unknown one."""
    words = line.split()
    if not words or not words[0].startswith("/"):
        return None
    if words[0] == "/quit":
        return ChatCommand.EXIT
    try:
        return ChatCommand(words[0])
    except ValueError:
        raise ValueError(f"there is no {words[0]}; {HELP}") from None


@dataclass
class Conversation:
    """All turns so far, the system's words first."""

    system: str | None = None
    turns: list[ChatMessage] = field(default_factory=list[ChatMessage])

    def ask(self, text: str) -> list[ChatMessage]:
        """Add a question and return what the model gets."""
        self.turns.append(ChatMessage(role="user", content=text))
        return messages(self.system, *self.turns)

    def answered(self, text: str) -> None:
        """Add the answer; one that was stopped counts as far as it went, and an empty one takes its question back."""
        if text:
            self.turns.append(ChatMessage(role="assistant", content=text))
        else:
            self.turns.pop()

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()


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
    """Do what a command says; False when it says to leave."""
    try:
        command = command_of(line)
    except ValueError as error:
        note(str(error))
        return True
    if command is ChatCommand.HELP:
        click.echo(HELP, err=True)
    if command is ChatCommand.RESET:
        conversation.reset()
        click.echo("The conversation is forgotten.", err=True)
    return command is not ChatCommand.EXIT


def _answer(client: Client, conversation: Conversation, line: str, asked: GenerateOptions) -> None:
    pieces: list[str] = []
    asked["messages"] = conversation.ask(line)
    try:
        with naming_the_flag(), client.stream(**asked) as stream:
            for chunk in stream:
                pieces.append(chunk.text)
                answer(chunk.text, nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    except RequestError as error:  # a conversation outlives one bad answer
        note(f"error: {error}")
    click.echo()
    conversation.answered("".join(pieces))
