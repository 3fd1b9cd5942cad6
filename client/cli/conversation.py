"""A conversation with a model: what has been said, and what a typed line means. No terminal, no network."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ...protocol.tasks import ChatMessage


class ChatCommand(enum.Enum):
    """What a line beginning with / asks for."""

    EXIT = "/exit"
    RESET = "/reset"
    HELP = "/help"


HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


def command_of(line: str) -> ChatCommand | None:
    """Read an order; None for anything that is meant for the model. Raises ValueError for an unknown one."""
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
        told = [ChatMessage(role="system", content=self.system)] if self.system else []
        return [*told, *self.turns]

    def answered(self, text: str) -> None:
        """Add the answer; one that was stopped counts as far as it went, and an empty one takes its question back."""
        if text:
            self.turns.append(ChatMessage(role="assistant", content=text))
        else:
            self.turns.pop()

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()
