"""An engine process: one device, one loop on one thread, one envelope to the agent for each pass.

`python -m zmqrt.worker.engines.process --channel DESCRIPTOR --spec JSON`, spawned by the supervisor and by
nobody else. The loop drains what the agent wants, lets each busy engine do one step, and sends what came of it. A loop
that stands still sends nothing: its silence is how the agent finds a hung engine.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import logging
import math
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, assert_never, cast, get_args

import msgspec

from ...protocol.capabilities import BEFORE, TOKEN_IDS, TOOLS
from ...protocol.limits import MAX_CAPABILITIES, MAX_NAME_CHARS
from ...protocol.logs import configure_logging
from ...protocol.names import as_typed, is_capability
from ...protocol.parent_watch import end_with_parent, watch_parent
from . import ipc
from .adapters import EngineAdapter, Outbox, TokenAdapter, describe
from .base import (
    BatchEngine,
    CannotLoadError,
    Engine,
    EngineFatalError,
    EngineSpec,
    EngineStats,
    Phase,
    RowEngine,
    StartAgainError,
    StreamEngine,
    TaskName,
    TokenEngine,
)
from .batch_adapter import BatchAdapter
from .batcher import Batcher, within_a_quarter
from .channel import Channel, WakePipe, inherited
from .factories import LoadProgress, load_engines, revision_of
from .row_adapter import RowAdapter

log = logging.getLogger("zmqrt.worker.engines.process")  # by name: here __name__ is "__main__"

_TEXT_ALONE: Final = ("rerank", "classify")
"""Tasks whose bodies hold texts and never token ids."""
_SIGN_S: Final = 0.2
"""How often an idle loop shows that it moves; the agent is promised 250 ms."""
_STEP_WAIT_S: Final = 0.05
"""How long a step may be awaited before the agent is heard again: a cancel takes effect within this."""
_PIECE_S: Final = 0.005
_LINGER_S: Final = 0.5
_OWN_LETTERS: Final = 32


class EngineLoop:
    """Runs the adapters until the agent says Stop."""

    def __init__(
        self, channel: Channel, adapters: Mapping[str, EngineAdapter], out: Outbox, *, wakeups: WakePipe
    ) -> None:
        self._channel = channel
        self._adapters = adapters
        self._out = out
        self._wakeups = wakeups
        self._is_stopped = False
        self._looked_at = time.monotonic()
        """When something was sent, or would have been if all adapters were alive."""
        self._busy: dict[str, EngineAdapter] = {}
        """Those that had something to do in this pass."""
        self._counted_at = -math.inf
        """When the counters of all were read; in between those of the busy ones are, for they alone move."""
        self._poll = select.poll()
        self._poll.register(wakeups, select.POLLIN)

    def run(self) -> None:
        """Go round. Raises what breaks an engine; what the step before it made has been sent."""
        while not (self._is_stopped or self._channel.is_over):
            self.turn()

    def turn(self) -> None:
        """Go round once: wait for something to do, do it, and tell the agent."""
        self._wait()
        self._take_in()
        try:
            self._advance()
        finally:
            self._report()

    def _wait(self) -> None:
        if self._is_anyone_busy() or self._out.has_step() or self._out.messages:
            return
        left_s = self._looked_at + _SIGN_S - time.monotonic()
        self._poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.has_unsent else 0))
        self._poll.poll(max(0, math.ceil(1000 * left_s)))
        self._wakeups.drain()

    def _is_anyone_busy(self) -> bool:
        return any(adapter.is_busy for adapter in self._adapters.values())

    def _take_in(self) -> None:
        give_up_at = time.monotonic() + _STEP_WAIT_S
        while True:
            for data in self._channel.receive():
                for message in ipc.decode_to_engine(data):
                    self._handle(message)
            # A large one comes in pieces, as fast as they are read: not one a step, with all that is behind it waiting.
            if not self._channel.is_reading or time.monotonic() >= give_up_at:
                return
            select.select([self._channel], [], [], _PIECE_S)

    def _handle(self, message: ipc.ToEngine) -> None:
        match message:
            case ipc.Submit(service, request):
                self._submit(service, request.ticket, message)
            case ipc.SubmitTask(service, ticket):
                self._submit(service, ticket, message)
            case ipc.CancelTicket(ticket):
                for adapter in self._adapters.values():  # tickets are unique over all services
                    adapter.cancel(ticket)
            case ipc.Stop():
                self._is_stopped = True
            case _:
                assert_never(message)

    def _submit(self, service: str, ticket: int, message: ipc.Submit | ipc.SubmitTask) -> None:
        adapter = self._adapters.get(service)
        if adapter is None:
            error = f"this engine has no service {service!r}"
            self._out.messages.append(ipc.Refused(ticket, full=False, error=error))
        else:
            adapter.submit(message)

    def _advance(self) -> None:
        busy = self._busy = {name: adapter for name, adapter in self._adapters.items() if adapter.is_busy}
        for adapter in busy.values():
            adapter.advance(_STEP_WAIT_S / len(busy))

    def _report(self) -> None:
        now = time.monotonic()
        is_sign_due = now - self._looked_at >= _SIGN_S
        stats = None
        if self._out.has_step() or is_sign_due:
            self._looked_at = now
            if self._out.has_step() or all(adapter.is_alive for adapter in self._adapters.values()):
                stats = self._stats(now)
        messages = self._out.take(stats)
        if messages:
            self._channel.send(ipc.encode(messages))
        give_up_at = now + _STEP_WAIT_S
        while self._channel.has_unsent and time.monotonic() < give_up_at:  # a large result, and all that is behind it
            select.select([], [self._channel], [], _PIECE_S)
            self._channel.flush()

    def _stats(self, now: float) -> dict[str, EngineStats]:
        counted: Mapping[str, EngineAdapter] = self._busy
        if now - self._counted_at >= _SIGN_S:
            self._counted_at, counted = now, self._adapters
        return {name: adapter.stats() for name, adapter in counted.items()}

    def close(self) -> None:
        """Close every engine; one that fails to does not keep the others."""
        for adapter in self._adapters.values():
            try:
                adapter.close()
            except Exception:
                log.exception("an engine failed to close")


# --- from a spec to adapters ------------------------------------------------------------------------------------------


def make_adapter(engine: object, spec: EngineSpec, out: Outbox, wake: Callable[[], None]) -> EngineAdapter:
    """Put the adapter of its protocol around an engine. Raises TypeError if it follows none."""
    if isinstance(engine, TokenEngine):
        return TokenAdapter(engine, out, wake)
    max_latency_s = spec.batch_max_latency_ms / 1000
    if isinstance(engine, RowEngine):  # asked before BatchEngine, whose methods it has too
        batcher = Batcher(
            max_size=spec.batch_max_size,
            max_latency_s=max_latency_s,
            max_tokens=engine.batch_tokens,
            pad=within_a_quarter,
        )
        return RowAdapter(engine, out, batcher)
    if isinstance(engine, BatchEngine):
        batcher = Batcher(max_size=spec.batch_max_size, max_latency_s=max_latency_s)
        return BatchAdapter(engine, out, batcher, wake)
    if isinstance(engine, StreamEngine):
        from .stream_adapter import StreamAdapter  # asyncio is a third of what this process loads

        return StreamAdapter(engine, out, wake)
    raise TypeError(
        f"{spec.engine} returned a {type(engine).__name__}, which is neither a TokenEngine (submit, cancel, poll, …) "
        "nor a BatchEngine (run, …) nor a RowEngine (divide, run, unite, …) nor a StreamEngine (generate, …); see "
        "zmqrt.worker.engines.base"
    )


def describe_service(name: str, adapter: EngineAdapter, engine: Engine, spec: EngineSpec) -> ipc.EngineService:
    """Say what the agent may send to an adapter."""
    return ipc.EngineService(
        name=name,
        kind=adapter.kind,
        task=_task_of(engine, adapter.kind),
        capacity=engine.capacity(),
        model=_within(str(getattr(engine, "model", spec.model))),
        revision=_within(cast("str", getattr(engine, "revision", None)) or revision_of(spec)),
        capabilities=capabilities_of(engine),
        fallback=str(getattr(engine, "fallback", "")),
        resumes=bool(getattr(engine, "resumes", False)),
        has_keyed_noise=bool(getattr(engine, "has_keyed_noise", True)),
    )


def _within(name: str) -> str:
    """Shorten a name that no broker takes (some servers call a model by its path) to one that is as much its own."""
    if len(name) <= MAX_NAME_CHARS:
        return name
    own = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_OWN_LETTERS]
    return f"{name[: MAX_NAME_CHARS - _OWN_LETTERS - 1]}-{own}"


def _task_of(engine: Engine, kind: ipc.Kind) -> TaskName:
    said: object = getattr(engine, "task", None) or ("embed" if kind == "batch" else "generate")
    if said not in get_args(TaskName):
        raise CannotLoadError(f"the engine says that its task is {said!r}; there are {', '.join(get_args(TaskName))}")
    return cast("TaskName", said)


def capabilities_of(engine: Engine) -> list[str]:
    """Say what an engine can do beyond its task. Raises CannotLoadError if it says that in no names.

    One more name is its agent's.
    """
    said: object = getattr(engine, "capabilities", None)
    if said is None:
        if isinstance(engine, TokenEngine):
            return sorted(BEFORE | {TOOLS})  # the agent tells models of them
        takes_ids = getattr(engine, "task", None) not in _TEXT_ALONE and engine.capacity().vocabulary
        return [TOKEN_IDS] if takes_ids else []
    words = str(said)[:80]
    if isinstance(said, list | tuple | set | frozenset):
        names = {str(name) for name in cast("Iterable[object]", said)}
        if len(names) < MAX_CAPABILITIES and all(map(is_capability, names)):
            return sorted(names)
    raise CannotLoadError(f"{type(engine).__name__}.capabilities is no list of names: {words}")


# --- the process -----------------------------------------------------------------------------------------------------


class EngineMain:
    """One life: load, serve, leave."""

    def __init__(self, channel: Channel, spec: EngineSpec) -> None:
        self._channel = channel
        self._spec = spec
        self._started_at = time.monotonic()

    def run(self) -> int:
        """Return the exit code; the agent has read why it is not 0."""
        loop: EngineLoop | None = None
        try:
            loop = self._load()
            loop.run()
        except Exception as error:
            if isinstance(error, CannotLoadError):
                # Its words are for operators: no traceback adds to them.
                failed = ipc.EngineFailed(str(error), is_final=True)
            elif isinstance(error, StartAgainError):
                failed = ipc.EngineFailed(str(error), options=error.options)
            elif isinstance(error, EngineFatalError) and error.__cause__ is None:
                failed = ipc.EngineFailed(str(error))  # said on purpose, and logged by the agent
            else:
                log.exception("the engine on %s cannot go on", self._spec.device)
                failed = ipc.EngineFailed(describe(error))
            self._send(failed)
            return 1
        finally:
            if loop is not None:
                loop.close()
            self._channel.close(_LINGER_S)
        return 0

    def _load(self) -> EngineLoop:
        progress = LoadProgress(self._report_progress, time.monotonic)
        engines = load_engines(self._spec, progress)
        out = Outbox()
        wakeups = WakePipe()
        adapters = {name: make_adapter(engine, self._spec, out, wakeups.wake) for name, engine in engines.items()}
        services = [describe_service(name, adapter, engines[name], self._spec) for name, adapter in adapters.items()]
        self._send(ipc.EngineReady(services))
        return EngineLoop(self._channel, adapters, out, wakeups=wakeups)

    def _report_progress(self, phase: Phase, percent: float) -> None:
        self._send(ipc.EngineLoading(phase, percent, time.monotonic() - self._started_at))

    def _send(self, message: ipc.FromEngine) -> None:
        self._channel.send(ipc.encode([message]))


def main() -> int:
    """Run the process."""
    parser = argparse.ArgumentParser(description="One engine on one device; started by zmqrt-worker.")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--spec", required=True)
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--worker-id", default="")
    arguments = parser.parse_args([as_typed(argument) for argument in sys.argv[1:]])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    watch_parent()
    faulthandler.enable()
    spec = msgspec.json.decode(arguments.spec, type=EngineSpec)
    configure_logging(
        arguments.log_level, arguments.log_format, role=f"engine {spec.device}", worker_id=arguments.worker_id
    )
    return EngineMain(inherited(arguments.channel), spec).run()


if __name__ == "__main__":
    sys.exit(main())
if __name__ == "__mp_main__":  # multiprocessing has us again in what a library of our engine starts: it ends with us
    end_with_parent()
