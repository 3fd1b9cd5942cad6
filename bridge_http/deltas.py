"""Takes an answer apart for APIs whose answers are blocks or items, before each gives them its own shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..protocol.markup import AnswerParser, CalledTool, Content, Delta, Reasoning, Tools


class DeltaReader:
    """One answer, by the tools that it may call; `is_one`: one of them at most, and what comes behind is left out."""

    def __init__(self, tools: Tools = (), *, is_one: bool = False) -> None:
        self._parser = AnswerParser(tools)
        self._is_one = is_one

    @property
    def has_called(self) -> bool:
        """Whether the answer called a tool."""
        return self._parser.has_called

    @property
    def is_cut_short(self) -> bool:
        """Whether the answer ended within a call."""
        return self._parser.is_cut_short

    def whole(self, text: str) -> list[Delta]:
        """Read all of it."""
        return list(_merged(self._wanted((*self._parser.feed(text), *self._parser.finish()))))

    def feed(self, text: str) -> Iterator[Delta]:
        """Read a piece of it."""
        return _merged(self._wanted(self._parser.feed(text)))

    def finish(self) -> Iterator[Delta]:
        """Return what waited for more."""
        return _merged(self._wanted(self._parser.finish()))

    def _wanted(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        for delta in deltas:
            if not (self._is_one and isinstance(delta, CalledTool) and delta.number > 0):
                yield delta


def _merged(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Join neighbours of one kind; calls are whole as they are."""
    last: Delta | None = None
    for delta in deltas:
        match last, delta:
            case Content(before), Content(text):
                last = Content(before + text)
            case Reasoning(before), Reasoning(text):
                last = Reasoning(before + text)
            case _:
                if last is not None:
                    yield last
                last = delta
    if last is not None:
        yield last
