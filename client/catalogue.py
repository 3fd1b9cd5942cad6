"""Which model a request means that names none: the default, else the only one for its task. No socket, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..protocol.errors import ErrorKind, request_error
from ..protocol.messages import TaskName
from ..protocol.snapshot import ServiceStatus

_FRESH_S: Final = 5.0
"""Models come and go rarely; a wrong guess meanwhile is answered 404, which empties the catalogue."""
_REFUSABLE_S: Final = 0.5
"""A request is refused by a list that is younger than this: of two models one may be gone a second later."""


class Catalogue:
    """The services of the broker in use, as last told."""

    def __init__(self, default_model: str | None = None) -> None:
        self._default = default_model
        self._services: Sequence[ServiceStatus] = ()
        self._fresh_until = 0.0
        self._told_at = 0.0

    def learn(self, services: Sequence[ServiceStatus], now: float) -> None:
        """Take over what the broker told; an empty list is asked for again at once."""
        self._services = [one for one in services if one.is_listed]
        self._told_at = now
        self._fresh_until = now + (_FRESH_S if services else 0.0)

    def forget(self) -> None:
        """Another broker, or an answer that shows the list to be old."""
        self._fresh_until = 0.0

    def is_fresh(self, now: float) -> bool:
        """Whether `choose` may be asked."""
        return now < self._fresh_until

    def may_refuse(self, now: float) -> bool:
        """Whether the list is new enough to refuse a request by it, rather than ask for another one."""
        return now < self._told_at + _REFUSABLE_S

    def choose(self, task: TaskName) -> str:
        """Return the service for a task. Raises RequestError that lists what there is."""
        names = [one.service for one in self._services if one.task == task]
        if self._default in names:
            return self._default
        if len(names) == 1:
            return names[0]
        if names:
            text = f"several models can {task}: {', '.join(sorted(names))}; say which one (model=…, or a default model)"
            raise request_error(ErrorKind.BAD_REQUEST, text)
        if self._services:
            others = ", ".join(sorted(one.service for one in self._services))
            raise request_error(ErrorKind.NOT_FOUND, f"no model here can {task}; there are: {others}")
        raise request_error(
            ErrorKind.NO_WORKER, "the broker knows of no model yet; is a worker running (`zmqrt-worker`)?"
        )
