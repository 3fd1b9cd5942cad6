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
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, assert_never

from ..protocol import messages as m
from ..protocol.errors import RequestError
from . import actions as a
from .broker_link import BrokerLink
from .core import WorkerCore, WorkerState
from .engines import ipc
from .preprocess import PreparedGeneration, PreparedTask
from .supervisor import EngineSupervisor
from .tokenizer_pool import PendingPrompt, TokenizerPool

log = logging.getLogger(__name__)

_WATCHDOG_S: Final = 0.1
"""Looks at every socket without being asked: a belt for a wake-up that was missed."""
_EARLY_S: Final = 0.05
"""It may look so much earlier than need be, so that a timer is not set anew in each pass."""
_LEVELS: Final = logging.getLevelNamesMapping()


class Agent:
    """Carries the core. `run` returns the exit code of the node."""

    def __init__(
        self,
        core: WorkerCore,
        links: Sequence[BrokerLink],
        *,
        on_pass: Callable[[float], None],
    ) -> None:
        self.core = core
        self.links = links
        self.tokenizers: TokenizerPool | None = None
        self._on_pass = on_pass
        self._engines: EngineSupervisor | None = None
        self._loop = asyncio.get_running_loop()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="zmqrt-encode")  # one: long prompts keep their order
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = -math.inf
        """When that timer looks at everything."""
        self._due = -math.inf
        """When the core wants to do something by itself."""
        self._is_scheduled = False
        self._probed: set[int] = set()
        self._exit: asyncio.Future[int] = self._loop.create_future()

    def attach(self, engines: EngineSupervisor) -> None:
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
            if self.tokenizers is not None:
                self.tokenizers.close()

    # --- a pass ------------------------------------------------------------------------------------------------------

    def _pass(self) -> None:
        self._is_scheduled = False
        if self._exit.done():
            return
        try:
            now = self._loop.time()
            self._take_in(now)
            if now >= self._due:
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
            for device, sent in self._engines.receive():
                self.core.engine_sent(device, sent, now)
            for device, reason, is_restarted in self._engines.exits():
                self.core.engine_exited(device, reason, is_restarted=is_restarted, now=now)
        for index, link in enumerate(self.links):
            if not link.has_input():
                continue
            for messages in link.receive():
                self.core.received(index, messages, now)
            for ending in link.events():
                if ending is None:
                    self.core.connected(index, now)
                else:
                    self.core.lost(index, ending.cause, now, broke_off=ending.broke_off)

    def _has_input(self) -> bool:
        return any(link.has_input() for link in self.links)

    def _set_timer(self) -> None:
        now, self._due = self._loop.time(), self.core.next_deadline()
        look_at = min(now + _WATCHDOG_S, max(now, self._due))
        if look_at - _EARLY_S <= self._look_at <= look_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._look_at = look_at
        self._timer = self._loop.call_at(look_at, self._look_at_all)

    def _look_at_all(self) -> None:
        self._look_at = -math.inf
        for link in self.links:
            link.look_again()
        self.wake()

    # --- what the core wants -----------------------------------------------------------------------------------------

    def _carry_out(self, now: float) -> None:
        to_brokers: defaultdict[int, list[m.FromWorker]] = defaultdict(list)
        to_engines: defaultdict[str, list[ipc.ToEngine]] = defaultdict(list)
        for action in self.core.out:
            match action:
                case a.Send(broker, message):
                    to_brokers[broker].append(message)
                case a.ToEngine(device, request):
                    to_engines[device].append(request)
                case a.Preprocess():
                    self._preprocess(action)
                case a.HangUp(broker):
                    to_brokers.pop(broker, None)
                    self.links[broker].close()
                case a.Dial() | a.ProbeBroker():
                    self._reach(action)
                case a.RestartEngine(device, reason):
                    self._restart(device, reason)
                case a.Note(level, text, request_id, trace_id, rid, error):
                    about = {"request_id": request_id, "trace_id": trace_id, "rid": rid}
                    log.log(_LEVELS[level.upper()], "%s", text, extra=about, exc_info=error)
                case a.Exit(code, reason):
                    log.log(logging.ERROR if code else logging.INFO, "leaving: %s", reason)
                    self._loop.call_soon(self.stop, code)
                case _:
                    assert_never(action)
        self.core.out.clear()
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
        if broker in self._probed:
            return
        broke_off = action.broke_off
        self._probed.add(broker)

        def look() -> None:
            cause = self.links[broker].diagnose(broke_off=broke_off)
            with contextlib.suppress(RuntimeError):  # the node is gone meanwhile
                self._loop.call_soon_threadsafe(self._explained, broker, cause)

        threading.Thread(target=look, name="zmqrt-probe", daemon=True).start()

    def _explained(self, broker: int, cause: str) -> None:
        self._probed.discard(broker)
        self.core.explained(broker, cause)
        self.wake()

    def _restart(self, device: str, reason: str) -> None:
        log.error("%s: the engine is killed: %s", device, reason)
        if self._engines is not None:
            self._engines.restart(device, reason)

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _preprocess(self, action: a.Preprocess) -> None:
        if not action.needs_pool:
            self._finish(action, None)
            return
        assert self.tokenizers is not None
        self.tokenizers.encode(
            PendingPrompt(
                action.dispatch.body,
                action.limits,
                is_wanted=lambda: self.core.requests.is_preparing(action.job),
                done=lambda found: self._on_encoded(action, found),
            )
        )

    def _on_encoded(self, action: a.Preprocess, found: list[int] | RequestError) -> None:
        if isinstance(found, RequestError):
            self._on_prepared(action, found)
        else:
            self._finish(action, found)

    def _finish(self, action: a.Preprocess, prompt_ids: list[int] | None) -> None:
        """Do the rest: here if it is little, else on a thread."""
        preprocessor, dispatch = self.core.requests.preprocessor, action.dispatch
        if not preprocessor.is_long(dispatch):
            self._on_prepared(action, preprocessor.run(dispatch, action.limits, prompt_ids))
            return
        work = self._loop.run_in_executor(self._encoder, preprocessor.run, dispatch, action.limits, prompt_ids)
        work.add_done_callback(lambda done: None if done.cancelled() else self._on_prepared(action, done.result()))

    def _on_prepared(self, action: a.Preprocess, result: PreparedGeneration | PreparedTask | RequestError) -> None:
        if self.core.state is not WorkerState.GONE:
            self.core.requests.prepared(action.job, result, self._loop.time())
            self.wake()
