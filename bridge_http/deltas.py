"""What the parts of an answer come to, before an API gives them its shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ..protocol.markup import Content, Delta, Reasoning


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Join neighbours of one kind; calls are whole as they are."""
    found: list[Delta] = []
    for delta in deltas:
        match delta, found[-1] if found else None:
            case Content(text), Content(before):
                found[-1] = Content(before + text)
            case Reasoning(text), Reasoning(before):
                found[-1] = Reasoning(before + text)
            case _:
                found.append(delta)
    return found
