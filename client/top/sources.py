"""Where the picture comes from: brokers that are asked once a second, or a recording."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from ...protocol.errors import NotFoundError, ZmqrtError
from ...protocol.request_trace import RequestTrace
from ..cli.poller import Poller
from ..config import ClientSettings
from .fleet import Sight
from .recording import Recording

EVERY_S: Final = 1.0
_SPEEDS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_JUMP_S: Final = 10.0


class Source(Protocol):
    """What the monitor shows."""

    def __enter__(self) -> Self:
        """Begin to look."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        ...

    def look(self, *, is_paused: bool = False) -> tuple[list[Sight], float]:
        """Return all brokers as they are now, and when that is in Unix seconds."""
        ...

    def looks(self) -> Iterator[tuple[list[Sight], float]]:
        """Return looks at the pace at which they are worth printing, for ever or to the end."""
        ...

    def press(self, key: str) -> bool:
        """Take a key that only this source knows; True if the picture jumps, so that curves begin anew."""
        ...

    @property
    def mode(self) -> str:
        """Say in the corner of the screen what this is."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether it goes on while the picture is paused."""
        ...

    def drain(self, node_id: str) -> str:
        """Ask for a node to be drained; return what came of it in words."""
        ...

    def explain(self, endpoint: str, rid: str) -> list[RequestTrace]:
        """Ask one broker for the story of a request. Raises ZmqrtError."""
        ...


class Brokers:
    """The brokers of the settings, each asked in a thread of its own. `waits`: begin when each has answered or not."""

    mode = ""
    is_live = True

    def __init__(self, settings: ClientSettings, *, waits: bool) -> None:
        self._exits = contextlib.ExitStack()
        self._patience_s = settings.connect_timeout_s + 1.0 if waits else 0.3
        self._pollers = [
            Poller(
                endpoint,
                settings.keys,
                insecure=settings.insecure,
                every_s=EVERY_S,
                name="zmqrt top",
                connect_timeout_s=settings.connect_timeout_s,
            )
            for endpoint in settings.broker
        ]

    def __enter__(self) -> Self:
        for poller in self._pollers:
            self._exits.enter_context(poller)
        give_up_at = time.monotonic() + self._patience_s
        for poller in self._pollers:
            poller.wait_for_first(max(0.0, give_up_at - time.monotonic()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def look(self, *, is_paused: bool = False) -> tuple[list[Sight], float]:  # noqa: ARG002 - the fleet goes on
        """Return what each has told last."""
        sights = [
            Sight(endpoint=one.endpoint, snapshot=one.snapshot, problem=one.problem, is_leaving=one.is_leaving)
            for one in self._pollers
        ]
        return sights, time.time()

    def looks(self) -> Iterator[tuple[list[Sight], float]]:
        """Look once a second."""
        while True:
            yield self.look()
            time.sleep(EVERY_S)

    def press(self, key: str) -> bool:  # noqa: ARG002 - a recording knows some
        """Know no keys."""
        return False

    def drain(self, node_id: str) -> str:
        """Ask the brokers until one has done it: the node leaves all of them. Those that answer are asked first."""
        problems: list[str] = []
        for poller in sorted(self._pollers, key=lambda one: one.snapshot is None):
            try:
                return poller.client.drain(node_id).text
            except NotFoundError as error:
                problems.append(str(error))
            except ZmqrtError as error:
                problems.insert(0, str(error))
        return problems[0] if problems else "there is no broker to ask"

    def explain(self, endpoint: str, rid: str) -> list[RequestTrace]:
        """Ask the broker that told of the request."""
        poller = next(one for one in self._pollers if one.endpoint == endpoint)
        return poller.client.explain(rid)


class Player:
    """A recording, at its own pace or faster."""

    is_live = False

    def __init__(self, path: Path) -> None:
        self._recording = Recording(path)
        self._name = path.name
        self._speed = _SPEEDS.index(1.0)
        self._at_s = self._recording.time_of(0)
        self._looked_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recording.close()

    @property
    def mode(self) -> str:
        """Say where in the recording this is."""
        total_s, passed_s = self._end_s - self._begin_s, self._at_s - self._begin_s
        return f"{self._name} {passed_s:.0f}/{total_s:.0f} s x{_SPEEDS[self._speed]:g}"

    def look(self, *, is_paused: bool = False) -> tuple[list[Sight], float]:
        """Go on by the time that has passed since the last look; a pause does not count."""
        now = time.monotonic()
        if self._looked_at is not None and not is_paused:
            self._at_s = min(self._end_s, self._at_s + (now - self._looked_at) * _SPEEDS[self._speed])
        self._looked_at = now
        index = self._index()
        return self._recording.sights(index), self._recording.time_of(index)

    def looks(self) -> Iterator[tuple[list[Sight], float]]:
        """Return all of it, as fast as it can be read."""
        for index in range(len(self._recording)):
            yield self._recording.sights(index), self._recording.time_of(index)

    def press(self, key: str) -> bool:
        """Change the pace, or jump."""
        if key in ("+", "="):
            self._speed = min(len(_SPEEDS) - 1, self._speed + 1)
        elif key == "-":
            self._speed = max(0, self._speed - 1)
        elif key in ("left", "right"):
            self._at_s += _JUMP_S if key == "right" else -_JUMP_S
            self._at_s = min(max(self._at_s, self._begin_s), self._end_s)
            return True
        return False

    def drain(self, node_id: str) -> str:
        """Refuse: what was, was."""
        return f"this is a recording; `zmqrt drain {node_id}` drains the node of today"

    def explain(self, endpoint: str, rid: str) -> list[RequestTrace]:  # noqa: ARG002 - it was another time
        """Refuse: brokers tell stories, recordings hold none."""
        raise ZmqrtError("this is a recording, which holds no stories")

    @property
    def _begin_s(self) -> float:
        return self._recording.time_of(0)

    @property
    def _end_s(self) -> float:
        return self._recording.time_of(len(self._recording) - 1)

    def _index(self) -> int:
        low, high = 0, len(self._recording) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._recording.time_of(middle) <= self._at_s else (low, middle - 1)
        return low
