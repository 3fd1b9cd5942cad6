"""An answer as a shell shows it: words on standard output, thoughts dim on standard error, calls as lines of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import click
import msgspec

from ...protocol.markup import AnswerParser, CalledTool, Content, Delta, Reasoning, Tools
from .stdio import answer, data, thought


class AnswerView:
    """One answer, shown as it comes. `tools` may be called in it; None: it is text, whatever it looks like."""

    def __init__(self, tools: Tools | None = ()) -> None:
        self._parser = None if tools is None else AnswerParser(tools)
        self._line: Literal["", "words", "thoughts"] = ""
        """What the unfinished line holds."""
        self._has_shown = False
        self.words: list[str] = []
        self.calls: list[CalledTool] = []

    def show(self, text: str) -> None:
        """Show a piece of it, as far as it is certain what it is."""
        self._show_all([Content(text)] if self._parser is None else self._parser.feed(text))

    def close(self) -> None:
        """Show what waited for more, and end the line, so that whatever comes next begins on one of its own."""
        if self._parser is not None:
            self._show_all(self._parser.finish())
        if not self._has_shown:
            click.echo()
        self._turn_to("")

    def _show_all(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            match delta:
                case Content(text):
                    self._turn_to("words")
                    self.words.append(text)
                    answer(text, nl=False)
                case Reasoning(text):
                    self._turn_to("thoughts")
                    thought(text)
                case CalledTool():
                    self._turn_to("")
                    self.calls.append(delta)
                    data(call_fields(delta))
            self._has_shown = True

    def _turn_to(self, line: Literal["", "words", "thoughts"]) -> None:
        if self._line not in ("", line):
            click.echo(err=self._line == "thoughts")
        self._line = line


def call_fields(call: CalledTool) -> dict[str, Any]:
    """Return a call as programs read it; arguments that are no JSON (the answer was cut off) as the text they are."""
    try:
        arguments: Any = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError):
        arguments = call.arguments
    return {"name": call.name, "arguments": arguments}


def answer_fields(text: str, tools: Tools) -> dict[str, Any]:
    """Take a whole answer apart, for programs."""
    parser = AnswerParser(tools)
    deltas = [*parser.feed(text), *parser.finish()]
    return {
        "content": "".join(delta.text for delta in deltas if isinstance(delta, Content)),
        "reasoning": "".join(delta.text for delta in deltas if isinstance(delta, Reasoning)),
        "tool_calls": [call_fields(delta) for delta in deltas if isinstance(delta, CalledTool)],
    }
