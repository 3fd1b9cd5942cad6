"""Broker, workers and bridge as supervised children on loopback: what `zmqrt up` and `zmqrt demo` both start."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ...protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigurationError, ZmqrtError
from ...protocol.messages import TaskName
from ...protocol.sanitize import printable
from ...protocol.settings import SETTINGS_LOGGER, known_roles, resolve
from ...protocol.snapshot import Snapshot
from ..config import ClientSettings
from .interrupts import Interrupts
from .poller import Poller
from .stack_view import StackDisplay, hints
from .supervise import Child, ChildFailedError, Supervisor

_LOOPBACK: Final = "127.0.0.1"
_STALL_S: Final = 30.0
"""After which a worker gives an engine up by default."""
_STEP_S: Final = 0.1
"""How long Ctrl-C and a dead child may wait to be seen."""
_TAKEN: Final = "is in use by another process"
_OTHER_PORTS: Final = "of this command: --client-port, --worker-port, --port, or --port 0, which takes free ones"
"""A role's own hint names the role's own flags."""


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """What to run. A port of 0 is a free one. Without a time for requests the roles' own defaults count."""

    http_port: int = 8000
    client_port: int = 7555
    worker_port: int = 7556
    nodes: int = 1
    has_bridge: bool = True
    worker_arguments: tuple[str, ...] = ()
    keys: Path | None = None
    request_timeout_s: float | None = None
    log_level: str = "info"

    def broker(self, client_port: int, worker_port: int) -> list[str]:
        """Return the broker's arguments."""
        clients, workers = (f"tcp://{_LOOPBACK}:{port}" for port in (client_port, worker_port))
        return ["--clients", clients, "--workers", workers, *self._common, *self._timeout]

    def worker(self, node_id: str, broker: str) -> list[str]:
        """Return a worker's arguments. No step of an engine may be given up before its request's time is over."""
        longer = self.request_timeout_s is not None and self.request_timeout_s > _STALL_S
        stall = ["--stall-timeout", f"{self.request_timeout_s}s"] if longer else []
        return ["--broker", broker, "--node-id", node_id, *self._common, *stall, *self.worker_arguments]

    def bridge(self, port: int, broker: str) -> list[str]:
        """Return the bridge's arguments."""
        return ["--host", _LOOPBACK, "--port", str(port), "--broker", broker, *self._common, *self._timeout]

    @property
    def _common(self) -> list[str]:
        """What every role is given. It reports in JSON, because it is a program that reads it."""
        keys = ["--keys", str(self.keys)] if self.keys is not None else []
        return ["--log-format", "json", "--log-level", self.log_level, *keys]

    @property
    def _timeout(self) -> list[str]:
        return [] if self.request_timeout_s is None else ["--request-timeout", f"{self.request_timeout_s}s"]


def check_keys(plan: StackPlan) -> None:
    """Refuse roles that could not meet, such as one that has joined another fleet. Raises ConfigurationError."""
    if plan.keys is not None:
        return
    roles = known_roles()
    found = {name: resolve(roles[name]).settings.keys for name in ("broker", "worker", "bridge")}
    if len(set(found.values())) > 1:
        named = ", ".join(f"{name}: {keys or 'none'}" for name, keys in found.items())
        raise ConfigurationError(
            f"by their settings the roles have different keys ({named}) and could not meet, as on a machine that has "
            "joined a fleet; give them a folder of their own: --keys DIR, which is made if it is not there"
        )


def has_bridge() -> bool:
    """Say whether the HTTP stack is installed: it is an extra."""
    return all(importlib.util.find_spec(name) is not None for name in ("starlette", "uvicorn"))


class LocalStack:
    """The roles of a plan, each started as soon as what it needs is there, and the newest snapshot of them.

    Leaving the `with` block leaves no process behind.
    """

    def __init__(self, plan: StackPlan, display: StackDisplay, interrupts: Interrupts) -> None:
        check_keys(plan)
        self.plan = plan
        self._display = display
        self._interrupts = interrupts
        self._exits = contextlib.ExitStack()
        self._supervisor = Supervisor(self._show_record, self._show_end)
        self._broker = Child("broker", "zmqrt.broker", plan.broker(plan.client_port, plan.worker_port))
        self._workers: list[Child] = []
        self._bridge: Child | None = None
        self._poller: Poller | None = None
        self._settings_shown: set[str] = set()

    def __enter__(self) -> Self:
        self._exits.enter_context(self._supervisor)
        self._supervisor.add(self._broker)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def clients(self) -> str | None:
        """Where clients connect, once the broker is ready."""
        return self._broker.endpoints.get("clients")

    @property
    def http(self) -> str | None:
        """Where the bridge listens, once it is ready."""
        return self._bridge.endpoints.get("http") if self._bridge is not None else None

    @property
    def snapshot(self) -> Snapshot | None:
        """How the fleet was half a second ago."""
        return self._poller.snapshot if self._poller is not None else None

    @property
    def is_served(self) -> bool:
        """Whether a request would be answered now, on every way there is."""
        has_http = self.http is not None or not self.plan.has_bridge
        return self.snapshot is not None and self.snapshot.ready and has_http

    def step(self) -> None:
        """Supervise, start what can be started now, show all of it, and wait a moment. Raises ChildFailedError."""
        try:
            self._supervisor.step()
        except ChildFailedError as error:
            if _TAKEN not in str(error):
                raise
            raise ChildFailedError(f"{error}; {_OTHER_PORTS}", error.exit_code) from None
        if self._broker.endpoints and not self._workers:
            self._follow_broker()
        if self.http is not None and self._bridge is not None:
            self._bridge.arguments = self.plan.bridge(_port(self.http), self._broker.endpoints["clients"])
        self._display.show(self._supervisor.children, self.snapshot, self._hints())
        time.sleep(_STEP_S)

    def _hints(self) -> list[str]:
        snapshot = self.snapshot
        if self.clients is None or snapshot is None or not self.is_served:
            return []
        models: dict[TaskName, str] = {service.task: service.service for service in snapshot.services if service.nodes}
        return hints(self.clients, self.http, self.plan.keys, models)

    def check(self) -> None:
        """Check that the stack can still come up.

        Raises:
            ZmqrtError: a role has died, or a model cannot be loaded.
        """
        for child in self._supervisor.children:
            if child.restarts:
                raise ZmqrtError(f"{child.name} ended; its last words: {child.last_words() or 'none'}")
        for node in self.snapshot.nodes if self.snapshot is not None else ():
            if node.phase == "failed":
                worker = next(worker for worker in self._workers if worker.name == node.node_id)
                raise ZmqrtError(f"{node.node_id} cannot serve: {worker.last_words() or 'it gives no reason'}")

    def leave(self, asked: int) -> int:
        """Let everything finish, unless there are more interrupts than the `asked` ones; return the exit code.

        Those that bring work leave first, and the broker, which carries it, last.
        """
        bridges = [self._bridge] if self._bridge is not None else []
        groups: list[Sequence[Child]] = [bridges, self._workers, [self._broker]]
        for group in groups:
            self._supervisor.drain(group)
            while not self._supervisor.have_ended(group):
                time.sleep(_STEP_S)
                if self._interrupts.count > asked:
                    return EXIT_INTERRUPTED
        return EXIT_OK

    def _follow_broker(self) -> None:
        """Start the others, now that it is known where the broker listens."""
        plan, endpoints = self.plan, self._broker.endpoints
        # Started anew, it has to come back where the others look for it.
        self._broker.arguments = plan.broker(_port(endpoints["clients"]), _port(endpoints["workers"]))
        for name in (f"node-{number}" for number in range(plan.nodes)):
            child = Child(name, "zmqrt.worker", plan.worker(name, endpoints["workers"]))
            self._workers.append(self._supervisor.add(child))
        if plan.has_bridge:
            arguments = plan.bridge(plan.http_port, endpoints["clients"])
            self._bridge = self._supervisor.add(Child("bridge", "zmqrt.bridge_http", arguments))
        self._poller = self._exits.enter_context(Poller(endpoints["clients"], ClientSettings(keys=plan.keys)))

    def _show_record(self, child: Child, record: dict[str, Any]) -> None:
        """Show what a role logs, where a person should see it; all roles read the same settings and log the same."""
        message = str(record.get("message", ""))
        if record.get("logger") == SETTINGS_LOGGER:
            if message not in self._settings_shown:
                self._settings_shown.add(message)
                self._display.say(f"settings: {message}")
        elif record.get("level") in ("warning", "error", "critical"):
            self._display.say(printable(f"{child.name}: {message}"))

    def _show_end(self, child: Child, why: str) -> None:
        self._display.say(printable(f"{child.name} ended: {why}; starting it again"))


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])
