"""One run of the stack, from the first process to the last: what `zmqrt up` and `zmqrt demo` have in common."""

from __future__ import annotations

import contextlib
import functools
import time
from types import TracebackType
from typing import Any, Final, Self

from ...protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ZmqrtError
from ...protocol.settings import SETTINGS_LOGGER
from ...protocol.snapshot import Snapshot
from .interrupts import Interrupts
from .poller import Poller
from .stack import Plan, Stack
from .supervise import Child, Supervisor
from .up_display import Display, tell_end, tell_record
from .up_view import hints

STEP_S: Final = 0.1
"""How long Ctrl-C and a dead child may wait to be seen."""


class Session:
    """The stack, the newest snapshot of it, and the display. Leaving the `with` block leaves no process behind."""

    def __init__(self, plan: Plan, shown: Display, interrupts: Interrupts) -> None:
        self._plan = plan
        self._shown = shown
        self._interrupts = interrupts
        self._exits = contextlib.ExitStack()
        self._supervisor = Supervisor(self._tell, functools.partial(tell_end, shown))
        self._told: set[str] = set()
        self._poller: Poller | None = None
        self.stack = Stack(plan, self._supervisor)

    def __enter__(self) -> Self:
        self._exits.enter_context(self._supervisor)
        self.stack.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    @property
    def snapshot(self) -> Snapshot | None:
        """How the fleet was half a second ago."""
        return self._poller.snapshot if self._poller is not None else None

    @property
    def is_served(self) -> bool:
        """Whether a request would be answered now, on every way there is."""
        has_http = self.stack.http is not None or not self._plan.has_bridge
        return self.snapshot is not None and self.snapshot.ready and has_http

    def step(self) -> None:
        """Supervise and show, then wait a moment. Raises ChildFailedError."""
        self.stack.step()
        clients = self.stack.clients
        if self._poller is None and clients is not None:
            self._poller = self._exits.enter_context(Poller(clients, self._plan.keys))
        tried = hints(clients, self.stack.http, self._plan.keys) if clients is not None and self.is_served else []
        self._shown.show(self._supervisor.children, self.snapshot, tried)
        time.sleep(STEP_S)

    def _tell(self, child: Child, record: dict[str, Any]) -> None:
        """Pass on what a role logs; all of them read the same settings, and say the same of them."""
        if record.get("logger") != SETTINGS_LOGGER:
            tell_record(self._shown, child, record)
        elif (words := str(record.get("message", ""))) not in self._told:
            self._told.add(words)
            self._shown.say(f"settings: {words}")

    def check(self) -> None:
        """Refuse to wait for what will not come.

        Raises:
            ZmqrtError: a role has died, or a model cannot be loaded.
        """
        for child in self._supervisor.children:
            if child.restarts:
                raise ZmqrtError(f"{child.name} ended; its last words: {child.last_words() or 'none'}")
        for node in self.snapshot.nodes if self.snapshot is not None else ():
            if node.phase == "failed":
                child = next(each for each in self.stack.workers if each.name == node.node_id)
                raise ZmqrtError(f"{node.node_id} cannot serve: {child.last_words() or 'it gives no reason'}")

    def leave(self, asked: int) -> int:
        """Let everything finish, unless there are more interrupts than the `asked` ones; return the exit code."""

        def go_on() -> bool:
            time.sleep(STEP_S)
            return self._interrupts.count <= asked

        return EXIT_OK if self.stack.drain(go_on) else EXIT_INTERRUPTED
