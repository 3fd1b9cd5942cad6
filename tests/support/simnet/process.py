"""What all simulated processes share: an inbox, passes over it, timers, and the ways to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from .wire import Item, Wire, is_idle_talk

if TYPE_CHECKING:
    from .world import World

_LATE_S: Final = 0.0005
"""Timers fire a little late, as everywhere."""
INFINITY: Final = float("inf")


class Process:
    """One operating-system process. Subclasses say what a pass does; `host` outlives it, `name` is its alone."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.agenda = world.agenda
        self.host = host
        self.name = f"{host}.{world.next_number()}"
        self.is_up = True
        self.is_frozen = False
        self.freezes = 0
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake_at = INFINITY

    # --- for subclasses ----------------------------------------------------------------------------------------------

    def take(self, wire: Wire, item: Item) -> None:
        """Act on what came over a connection."""
        raise NotImplementedError

    def tick(self) -> None:
        """Act on what is due."""
        raise NotImplementedError

    def due(self) -> float:
        """Return when `tick` has something to do."""
        raise NotImplementedError

    def finish_pass(self) -> None:
        """Send what is to be sent, and check what must hold between two passes."""
        raise NotImplementedError

    def has_input(self) -> bool:
        """Whether something waits for the next pass."""
        return bool(self._inbox)

    # --- passes ------------------------------------------------------------------------------------------------------

    def arrive(self, wire: Wire, item: Item) -> None:
        """Receive something; a frozen process finds it when it goes on."""

        def take() -> None:
            if not is_idle_talk(item):
                self.agenda.note(self.name, item)
            self.take(wire, item)

        self.call(take)

    def call(self, do: Callable[[], None]) -> None:
        """Do something within a pass: what an engine, an operator or an application wants."""
        if not self.is_up:
            return
        self._inbox.append(do)
        if self.is_frozen:
            return
        if self.world.rng.random() < self.world.busy:  # otherwise occupied: the next pass finds more than one thing
            self.agenda.after(self.world.rng.uniform(0.0, 0.02), self.run_pass)
        else:
            self.run_pass()

    def run_pass(self) -> None:
        """Read first, then look at the time: what lies there unread is no silence."""
        if not self.is_up or self.is_frozen:
            return
        while self._inbox:
            self._inbox.popleft()()
        if self.agenda.now >= self.due():
            self.tick()
        self.finish_pass()
        self._set_timer()

    def _set_timer(self) -> None:
        due = self.due()
        if due < self._wake_at:
            self._wake_at = max(due, self.agenda.now) + _LATE_S
            if due < INFINITY:
                self.agenda.at(self._wake_at, partial(self._woken, self._wake_at))

    def _woken(self, when: float) -> None:
        if when != self._wake_at or not self.is_up:
            return
        self._wake_at = INFINITY
        if self.agenda.now >= self.due():
            self.run_pass()
        else:
            self._set_timer()

    # --- what happens to it ------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """SIGSTOP."""
        self.is_frozen = True
        self.freezes += 1
        self.agenda.note(self.name, "frozen")
        for wire in self.world.wires_of(self):
            self.agenda.after(self.world.zmtp_s(wire.side), partial(self._fall_silent, wire, self.freezes))

    def _fall_silent(self, wire: Wire, freeze: int) -> None:
        if self.is_frozen and self.freezes == freeze:
            wire.time_out()

    def thaw(self) -> None:
        """SIGCONT."""
        if self.is_frozen:
            self.is_frozen = False
            self.agenda.note(self.name, "goes on")
            self._wake_at = INFINITY
            self.run_pass()

    def kill(self) -> None:
        """SIGKILL: nothing is said; the kernel closes the connections."""
        if not self.is_up:
            return
        self.is_up = False
        self._inbox.clear()
        self.agenda.note(self.name, "killed")
        for wire in self.world.wires_of(self):
            wire.cut(dead=self)
