"""One engine process: the mock with its slot store, stepped by the virtual clock; it loads, crashes, hangs, comes back.

It computes every token from what it reads back of its own slots, so a resume without its prefix, or a slot used too
early, is a wrong token at once. It also keeps the books of what must not run twice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import EngineFullError, TokenEvent
from zmqrt.worker.engines.mock import MockEngine, MockTiming

if TYPE_CHECKING:
    from .worker import WorkerProcess
    from .world import World

SERVICE: Final = "toy"
_SIGN_OF_LIFE_S: Final = 0.4
CONTEXT: Final = 256


class ToyEngine:
    """The engine process of one device, and its supervisor."""

    def __init__(self, node: WorkerProcess, device: str, rng: random.Random) -> None:
        self._node = node
        self._device = device
        self._rng = rng
        self._model: MockEngine | None = None
        self._life = 0
        self._live: set[int] = set()
        """Tickets whose last event is to come: while there are any, the loop steps."""
        self._is_stepping = False
        self.is_hanging = False

    @property
    def _world(self) -> World:
        return self._node.world

    def load(self) -> None:
        """Start the process; it is ready a moment later."""
        self._life += 1
        life = self._life
        self._node.agenda.after(self._rng.uniform(0.01, 0.3), lambda: self._ready(life))

    def _ready(self, life: int) -> None:
        if life != self._life or not self._node.is_up:
            return
        plan = self._world.plan
        agenda = self._node.agenda
        self._model = MockEngine(
            slots=plan.slots, context=CONTEXT, timing=MockTiming(step_ms=plan.step_ms), clock=lambda: agenda.now
        )
        self.is_hanging = self._is_stepping = False
        self._live.clear()
        service = ipc.EngineService(
            name="", kind="token", task="generate", capacity=self._model.capacity(), model=SERVICE, revision="r1"
        )
        self._node.said(self._device, [ipc.EngineReady([service])])
        self._show_life(life)

    def crash(self) -> None:
        """Die, whatever runs; the supervisor starts another one."""
        if self._model is None or not self._node.is_up:
            return
        self._node.agenda.note(self._node.name, f"engine {self._device} crashes")
        self._model = None
        core = self._node.core

        def exited() -> None:
            core.engine_exited(self._device, "killed", is_restarted=True, now=self._node.agenda.now)

        self._node.call(exited)
        self.load()

    # --- requests ----------------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[ipc.ToEngine]) -> None:
        """Take requests in; what is sent to a process that is gone is lost with it."""
        model = self._model
        if model is None:
            return
        answers: list[ipc.FromEngine] = []
        for message in messages:
            if isinstance(message, ipc.Submit):
                try:
                    model.submit(message.request)
                except EngineFullError:  # nothing of it has run
                    answers.append(ipc.Refused(message.request.ticket, full=True, error=""))
                else:
                    self._live.add(message.request.ticket)
                    self._world.oracle.submitted(message.request)
            elif isinstance(message, ipc.CancelTicket):
                model.cancel(message.ticket)
        if answers:
            self._node.agenda.after(0.0, lambda: self._node.said(self._device, answers))
        if not self._is_stepping:
            self._is_stepping = True
            life = self._life
            self._node.agenda.after(0.0, lambda: self._step(life))

    def _step(self, life: int) -> None:
        """Finish the step that is over and begin the next; wait when there is nothing to do."""
        model = self._model
        if life != self._life or model is None or not self._node.is_up or self.is_hanging:
            return
        if self._node.is_frozen and self._world.plan.freezes_engines:
            self._node.agenda.after(0.05, lambda: self._step(life))
            return
        events = model.poll(0.0)
        events += model.poll(0.0)  # the first may have ended a step, this one begins the next
        self._live.difference_update(event.ticket for event in events if event.finish_reason is not None)
        if events:
            self._tell(model, events)
        self._is_stepping = bool(self._live)  # what was told may have brought more
        if self._is_stepping:
            self._node.agenda.after(self._world.plan.step_ms / 1000 + 1e-6, lambda: self._step(life))

    def _tell(self, model: MockEngine, events: list[TokenEvent]) -> None:
        self._node.said(self._device, [ipc.StepReport(events, [], {"": model.stats()})])

    def _show_life(self, life: int) -> None:
        """Say something even when there is nothing to do: a loop that is not heard of counts as standing still."""
        if life != self._life or self._model is None or not self._node.is_up:
            return
        is_still = self.is_hanging or (self._node.is_frozen and self._world.plan.freezes_engines)
        if not is_still and not self._is_stepping:
            self._tell(self._model, [])
        self._node.agenda.after(_SIGN_OF_LIFE_S, lambda: self._show_life(life))

    def check_empty(self) -> None:
        """Check that nothing runs."""
        if self._model is not None:
            stats = self._model.stats()
            assert not stats.running
            assert not stats.waiting
