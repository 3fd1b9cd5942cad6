"""The services of an engine process as its loop sees them: submit, cancel, advance, whichever protocol is behind.

An adapter puts what it has to say into the process's one `Outbox`. A fault of one request is told as that request's
end; only what breaks the engine itself is raised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from .base import (
    EngineFatalError,
    EngineFullError,
    EngineStats,
    ItemResult,
    RequestRefusedError,
    TokenEngine,
    TokenEvent,
)
from .ipc import FromEngine, Kind, Refused, StepReport, Submit, SubmitTask

log = logging.getLogger(__name__)

_MAX_WORDS: Final = 500


def describe(error: BaseException) -> str:
    """Put an error into one paragraph: its class and its words. The traceback belongs into the log."""
    words = " ".join(str(error).split())
    name = type(error).__name__
    return (f"{name}: {words}" if words else name)[:_MAX_WORDS]


class Outbox:
    """What the engines have made since the last envelope."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.results: list[ItemResult] = []
        self.messages: list[FromEngine] = []

    def has_step(self) -> bool:
        """Whether there are events or results, which travel in a StepReport."""
        return bool(self.events or self.results)

    def take(self, stats: dict[str, EngineStats] | None) -> list[FromEngine]:
        """Return everything as messages, and be empty; with `stats`, a StepReport is among them."""
        messages, self.messages = self.messages, []
        if stats is not None:
            messages.append(StepReport(self.events, self.results, stats))
            self.events, self.results = [], []
        return messages


class EngineAdapter(Protocol):
    """One service."""

    @property
    def kind(self) -> Kind:
        """Which of the three protocols."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether `advance` has something to do now."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether whatever else runs the engine (a thread of its own) still moves."""
        ...

    def submit(self, message: Submit | SubmitTask) -> None:
        """Take a request in, or say why not."""
        ...

    def cancel(self, ticket: int) -> None:
        """Stop a request; one that is not live is ignored."""
        ...

    def advance(self, timeout_s: float) -> None:
        """Do one step, or wait for it at most so long. Raises what breaks the engine."""
        ...

    def stats(self) -> EngineStats:
        """Read counters and gauges."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class TokenAdapter:
    """A TokenEngine: it batches by itself, a poll is a step (or takes in what its own threads have made)."""

    kind: Kind = "token"

    def __init__(self, engine: TokenEngine, out: Outbox, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._out = out
        self._live: set[int] = set()
        wake_by: Callable[[Callable[[], None]], None] | None = getattr(engine, "wake_by", None)
        self._computes_elsewhere = wake_by is not None
        """Nothing is computed in its polls: to wait in one would hold up whatever comes from the agent."""
        if wake_by is not None:
            wake_by(wake)

    @property
    def is_busy(self) -> bool:
        """Whether any request has not had its last event, or the engine has begun more than that took."""
        return bool(self._live and not self._computes_elsewhere) or bool(getattr(self._engine, "is_busy", False))

    @property
    def is_alive(self) -> bool:
        """Whether its device moves, as far as the engine can tell; most compute in `poll`, whose return is the sign."""
        return bool(getattr(self._engine, "is_alive", True))

    def submit(self, message: Submit | SubmitTask) -> None:
        """Hand the request to the engine."""
        if isinstance(message, SubmitTask):
            self._out.messages.append(Refused(message.ticket, full=False, error="this service takes token requests"))
            return
        ticket = message.request.ticket
        try:
            self._engine.submit(message.request)
        except EngineFullError as error:
            self._out.messages.append(Refused(ticket, full=True, error=str(error)))
        except RequestRefusedError as error:
            self._out.messages.append(Refused(ticket, full=False, error=str(error)))
        except EngineFatalError:
            raise
        except Exception as error:
            log.exception("ticket %d: the engine failed to take the request in", ticket)
            self._out.events.append(TokenEvent(ticket=ticket, finish_reason="error", error=describe(error)))
        else:
            self._live.add(ticket)

    def cancel(self, ticket: int) -> None:
        """Tell the engine; its next poll has the last event."""
        self._engine.cancel(ticket)

    def advance(self, timeout_s: float) -> None:
        """Run or await one step."""
        events = self._engine.poll(0.0 if self._computes_elsewhere else timeout_s)
        self._out.events += events
        for event in events:
            if event.finish_reason is not None:
                self._live.discard(event.ticket)

    def stats(self) -> EngineStats:
        """Ask the engine."""
        return self._engine.stats()

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
