"""`zmqrt chat`: a conversation in the terminal. Ctrl-C stops the answer; pressed at the prompt, it leaves."""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from ...protocol.errors import RequestError
from ...protocol.markup import CalledTool, Tools, call_id
from ...protocol.settings import options
from ...protocol.tasks import ChatMessage, ToolCall
from ..calls import GenerateOptions
from ..config import ClientSettings
from ..sync import Client
from .answer_view import AnswerView
from .generation import SamplingFlags, messages, naming_the_flag, sampling_options
from .stdio import is_terminal, note
from .tool_flags import TOOL_HELP, callable_tools, tool_fields, tool_options
from .wait_line import WaitLine


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
    _asked_at: int = 0

    def ask(self, text: str) -> list[ChatMessage]:
        """Add a question and return what the model gets."""
        self._asked_at = len(self.turns)
        self.turns.append(ChatMessage(role="user", content=text))
        return messages(self.system, *self.turns)

    def answered(self, text: str, calls: Sequence[ToolCall] = ()) -> None:
        """Add the answer; one that was stopped counts as far as it went, and an empty one takes its question back."""
        if text or calls:
            self.turns.append(ChatMessage(role="assistant", content=text, tool_calls=list(calls)))
        else:
            del self.turns[self._asked_at :]

    def returned(self, call: ToolCall, text: str) -> list[ChatMessage]:
        """Add what a call came to and return what the model gets."""
        self.turns.append(ChatMessage(role="tool", content=text, tool_call_id=call.id, name=call.name))
        return messages(self.system, *self.turns)

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()


@click.command(
    help="Talk with a model; it remembers the conversation.",
    epilog=f"{HELP} What the model thinks first goes to standard error. With --tools each call is a line of JSON, and "
    f"the next line that you type is what the tool returned.\n\n{TOOL_HELP}",
)
@click.option("--system", metavar="TEXT", help="What the model is told beforehand.")
@tool_options
@sampling_options
@options(ClientSettings)
def command(
    settings: ClientSettings,
    sampling: SamplingFlags,
    *,
    system: str | None,
    tools: list[dict[str, Any]],
    tool_choice: str | None,
) -> None:
    """Read a line, answer it, until there is no more."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() history and editing
    asked: GenerateOptions = {**sampling.options(), **tool_fields(tools, tool_choice)}
    conversation = Conversation(system)
    with Client.from_settings(settings, name="zmqrt chat") as client:
        if is_terminal():
            click.secho(f"Connected to {client.endpoint}. {HELP}", dim=True, err=True)
        while (line := _read_line("> ")) is not None:
            if not _obeyed(line, conversation):
                return
            if line.strip() and not line.lstrip().startswith("/"):
                _answer(client, conversation, line, asked, callable_tools(tools, tool_choice))


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "")
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


def _answer(client: Client, conversation: Conversation, line: str, asked: GenerateOptions, tools: Tools) -> None:
    """Answer a line; for each call that the model makes read what it came to, and go on."""
    asked = {**asked, "messages": conversation.ask(line)}
    while calls := _say(client, conversation, asked, tools):
        for call in calls:
            asked["messages"] = conversation.returned(call, _read_line(f"{call.name} returned> ") or "")
        asked.pop("tool_choice", None)  # a call that must be is one, not one behind each other


def _say(client: Client, conversation: Conversation, asked: GenerateOptions, tools: Tools) -> list[ToolCall]:
    """Show one answer, keep it, and return what it calls."""
    view, wait = AnswerView(tools), WaitLine()
    asked["on_wait"] = wait.show
    try:
        with naming_the_flag(), client.stream(**asked) as stream:
            for chunk in stream:
                wait.clear()
                view.show(chunk.text)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    except RequestError as error:  # a conversation outlives one bad answer
        note(f"error: {error}")
    finally:
        wait.clear()
    view.close()
    calls = [_named(call, number) for number, call in enumerate(view.calls)]
    conversation.answered("".join(view.words), calls)
    return calls


def _named(call: CalledTool, number: int) -> ToolCall:
    return ToolCall(id=call_id(os.urandom(8), number), name=call.name, arguments=call.arguments)
