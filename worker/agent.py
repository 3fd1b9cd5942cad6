"""The loop of a node: one thread that moves bytes between brokers, engine processes and the core. Decides nothing.

A pass (`_pass`) drains the engines, then the brokers, lets the core decide, carries out what it wants, and looks
whether something arrived meanwhile: descriptors of ZeroMQ sockets are edge-triggered, and any call may eat the edge.
Prompts of a real model are rendered and encoded by processes of their own (`tokenizer_pool.py`), so that heartbeats
and streams go on whatever a template or a text of megabytes costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, assert_never

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, RequestError, request_error
from . import actions as a
from .broker_link import BrokerLink
from .core import WorkerCore, WorkerState
from .engines import ipc
from .preprocess import PreparedGeneration, PreparedTask, is_rendered, prepare_generation, prepare_task
from .tokenizer import Tokenizer
from .tokenizer_pool import PendingPrompt, TokenizerPool

log = logging.getLogger(__name__)

_LONG_BODY_BYTES: Final = 8 << 10
"""From here on a prompt may take more than 5 ms to render and encode."""
_WATCHDOG_S: Final = 0.1
"""Looks at every socket without being asked: a belt for a wake-up that was missed."""
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Engines(Protocol):
    """The engine processes of the node, as the agent sees them."""

    def receive(self) -> Iterator[tuple[str, list[ipc.FromEngine]]]:
        """Yield what has arrived, by device."""
        ...

    def exits(self) -> Iterator[tuple[str, str, bool]]:
        """Yield processes that are gone: device, reason, whether another one is started."""
        ...

    def has_input(self) -> bool:
        """Whether something is left to read."""
        ...

    def send(self, device: str, messages: Sequence[ipc.ToEngine]) -> None:
        """Send messages in one envelope."""
        ...

    def restart(self, device: str, reason: str) -> None:
        """Kill the process of a device; its exit is reported like any other."""
        ...


class Agent:
    """Carries the core. `run` returns the exit code of the node."""

    def __init__(
        self,
        core: WorkerCore,
        links: Sequence[BrokerLink],
        *,
        vocabulary: Callable[[], Tokenizer],
        on_pass: Callable[[float], None] = lambda now: None,  # noqa: ARG005 - nobody looks
    ) -> None:
        self.core = core
        self.links = links
        self._vocabulary = vocabulary
        self.readers: TokenizerPool | None = None
        """Who encodes prompts; None = here, as for the bytes of the mock."""
        self._on_pass = on_pass
        self._engines: Engines | None = None
        self._loop = asyncio.get_running_loop()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="zmqrt-encode")  # one: long prompts keep their order
        self._timer: asyncio.TimerHandle | None = None
        self._is_scheduled = False
        self._looking: set[int] = set()
        self._exit: asyncio.Future[int] = self._loop.create_future()

    def attach(self, engines: Engines) -> None:
        """Begin to serve through these engine processes."""
        self._engines = engines
        self.wake()

    def wake(self) -> None:
        """Look at everything soon."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._pass)

    def drain(self, deadline_s: float, reason: str) -> None:
        """Finish what runs and leave."""
        self.core.drain(deadline_s, reason, self._loop.time())
        self.wake()

    def stop(self, code: int) -> None:
        """Leave now, whatever runs."""
        if not self._exit.done():
            self._exit.set_result(code)

    async def run(self) -> int:
        """Serve until the node is gone."""
        self.wake()
        try:
            return await self._exit
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for link in self.links:
                link.close(is_farewell=True)
            self._encoder.shutdown(wait=False, cancel_futures=True)
            if self.readers is not None:
                self.readers.close()

    # --- a pass ------------------------------------------------------------------------------------------------------

    def _pass(self) -> None:
        self._is_scheduled = False
        if self._exit.done():
            return
        try:
            now = self._loop.time()
            self._take_in(now)
            if now >= self.core.next_deadline():
                self.core.tick(now)
            self.core.settle(now)
            self._carry_out(now)
            self._on_pass(now)
        except Exception:
            log.exception("the agent met a fault of its own and cannot go on")
            self.stop(1)
            return
        if self._has_input():
            self.wake()
        self._set_timer()

    def _take_in(self, now: float) -> None:
        """Results before new work."""
        if self._engines is not None:
            for device, said in self._engines.receive():
                self.core.engine_said(device, said, now)
            for device, reason, is_restarted in self._engines.exits():
                self.core.engine_exited(device, reason, is_restarted=is_restarted, now=now)
        for index, link in enumerate(self.links):
            for messages in link.receive():
                self.core.received(index, messages, now)
            for ending in link.events():
                if ending is None:
                    self.core.connected(index, now)
                else:
                    self.core.lost(index, ending.cause, now, broke_off=ending.broke_off)

    def _has_input(self) -> bool:
        return any(link.has_input() for link in self.links) or (self._engines is not None and self._engines.has_input())

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        self._timer = self._loop.call_at(min(now + _WATCHDOG_S, max(now, self.core.next_deadline())), self.wake)

    # --- what the core wants -----------------------------------------------------------------------------------------

    def _carry_out(self, now: float) -> None:
        """Do everything, also what comes of doing it (a short prompt is encoded on the spot)."""
        to_brokers: dict[int, list[m.FromWorker]] = {}
        to_engines: dict[str, list[ipc.ToEngine]] = {}
        out, index = self.core.out, 0
        while index < len(out):
            action = out[index]
            index += 1
            match action:
                case a.Send(broker, message):
                    to_brokers.setdefault(broker, []).append(message)
                case a.ToEngine(device, request):
                    to_engines.setdefault(device, []).append(request)
                case a.Prepare():
                    self._prepare(action, now)
                case a.HangUp(broker):
                    to_brokers.pop(broker, None)
                    self.links[broker].close()
                case a.Dial() | a.ProbeBroker():
                    self._reach(action)
                case a.RestartEngine(device, reason):
                    self._restart(device, reason)
                case a.Note(level, text, request_id, trace_id, rid):
                    about = {"request_id": request_id, "trace_id": trace_id, "rid": rid}
                    log.log(_LEVELS[level], "%s", text, extra=about)
                case a.Exit(code, reason):
                    log.log(logging.ERROR if code else logging.INFO, "leaving: %s", reason)
                    self._loop.call_soon(self.stop, code)
                case _:
                    assert_never(action)
        out.clear()
        self._flush(to_brokers, to_engines, now)

    def _flush(
        self, to_brokers: dict[int, list[m.FromWorker]], to_engines: dict[str, list[ipc.ToEngine]], now: float
    ) -> None:
        if self._engines is not None:
            for device, requests in to_engines.items():
                self._engines.send(device, requests)
        for broker, messages in to_brokers.items():
            if not self.links[broker].send(messages):
                self.core.lost(broker, "it takes no messages any more", now)
                self.wake()

    def _reach(self, action: a.Dial | a.ProbeBroker) -> None:
        """Connect; or look who answers, in a thread of its own: names and connections may take their time."""
        broker = action.broker
        if isinstance(action, a.Dial):
            self.links[broker].open()
            return
        if broker in self._looking:
            return
        broke_off = action.broke_off
        self._looking.add(broker)

        def look() -> None:
            cause = self.links[broker].diagnose(broke_off=broke_off)
            with contextlib.suppress(RuntimeError):  # the node is gone meanwhile
                self._loop.call_soon_threadsafe(self._explained, broker, cause)

        threading.Thread(target=look, name="zmqrt-probe", daemon=True).start()

    def _explained(self, broker: int, cause: str) -> None:
        self._looking.discard(broker)
        self.core.explained(broker, cause)
        self.wake()

    def _restart(self, device: str, reason: str) -> None:
        log.error("%s: the engine is killed: %s", device, reason)
        if self._engines is not None:
            self._engines.restart(device, reason)

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _prepare(self, action: a.Prepare, now: float) -> None:
        try:
            is_read = self.readers is not None and self._must_be_read(action)
        except RequestError as error:
            self.core.prepared(action.job, error, now)
            return
        if self.readers is None or not is_read:
            self._finish(action, None, now)
            return
        self.readers.read(
            PendingPrompt(
                action.dispatch.body,
                action.limits,
                is_wanted=lambda: self.core.requests.is_preparing(action.job),
                done=lambda found: self._on_read(action, found),
            )
        )

    def _must_be_read(self, action: a.Prepare) -> bool:
        """Whether a prompt is too long, or its model's template is too much of a stranger, to be encoded here."""
        body = action.dispatch.body
        if action.kind != "token":
            return False
        return len(body) >= _LONG_BODY_BYTES or is_rendered(body, self._vocabulary(), action.limits)

    def _on_read(self, action: a.Prepare, found: list[int] | RequestError) -> None:
        now = self._loop.time()
        if self.core.state is WorkerState.GONE:
            return
        if isinstance(found, RequestError):
            self.core.prepared(action.job, found, now)
        else:
            self._finish(action, found, now)
        self.wake()

    def _finish(self, action: a.Prepare, prompt_ids: list[int] | None, now: float) -> None:
        """Do the rest: here if it is little, else on a thread."""
        dispatch = action.dispatch
        if len(dispatch.body) + len(dispatch.resume) < _LONG_BODY_BYTES:
            self.core.prepared(action.job, self._encode(action, prompt_ids), now)
            return
        future = self._loop.run_in_executor(self._encoder, self._encode, action, prompt_ids)
        future.add_done_callback(lambda done: self._on_encoded(action.job, done))

    def _on_encoded(self, job: int, done: asyncio.Future[PreparedGeneration | PreparedTask | RequestError]) -> None:
        if self.core.state is not WorkerState.GONE and not done.cancelled():
            self.core.prepared(job, done.result(), self._loop.time())
            self.wake()

    def _encode(
        self, action: a.Prepare, prompt_ids: list[int] | None
    ) -> PreparedGeneration | PreparedTask | RequestError:
        """Run on any thread. A fault in a template or tokenizer fails the request, never the node."""
        try:
            if action.kind == "token":
                return prepare_generation(action.dispatch, self._vocabulary(), action.limits, prompt_ids)
            return prepare_task(action.dispatch, action.limits)
        except RequestError as error:
            return error
        except Exception as error:
            log.exception("a request could not be encoded", extra={"request_id": action.dispatch.rid.hex()})
            return request_error(ErrorKind.MODEL_RAISED, f"the request could not be encoded: {type(error).__name__}")
