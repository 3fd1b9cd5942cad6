"""Broker, workers and bridge as supervised children on loopback: with which arguments, in which order.

`zmqrt up` shows it to a person, `zmqrt demo` asks it one question. Both start it here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import click

from ...protocol.settings import duration_type
from .supervise import Child, Supervisor

_LOOPBACK: Final = "127.0.0.1"
_STALL_S: Final = 30.0
"""After which a worker gives an engine up by default."""
_duration: Final = duration_type("s", is_whole=False)


def _seconds(_context: click.Context, _parameter: click.Parameter, given: str | None) -> float | None:
    if given is None:
        return None
    try:
        seconds = float(cast("float", _duration.parse(given)))
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise click.BadParameter(f"expected {_duration.expected}, from 0.1s to 24h, not {given!r}")
    return seconds


timeout_option: Final = click.option(
    "--request-timeout",
    "request_timeout_s",
    metavar="DURATION",
    callback=_seconds,
    help="Longest time of a whole answer of /infer, and else without progress [default: 30s].",
)
"""What `up` and `demo` both take."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run. A port of 0 is a free one."""

    http_port: int = 8000
    client_port: int = 7555
    worker_port: int = 7556
    nodes: int = 1
    has_bridge: bool = True
    worker_arguments: tuple[str, ...] = ()
    keys: Path | None = None
    request_timeout_s: float | None = None
    """None = what the roles have by default, or by their environment."""
    log_level: str = "info"

    @property
    def common(self) -> list[str]:
        """Arguments that every role gets. It reports in JSON, because it is a program that reads it."""
        keys = ["--keys", str(self.keys)] if self.keys is not None else []
        return ["--log-format", "json", "--log-level", self.log_level, *keys]

    @property
    def timeout(self) -> list[str]:
        """Arguments for who keeps the time of requests."""
        return [] if self.request_timeout_s is None else ["--request-timeout", f"{self.request_timeout_s}s"]

    @property
    def stall(self) -> list[str]:
        """Arguments for who watches the engines: a step may not end its request's time before that is over."""
        longer = self.request_timeout_s is not None and self.request_timeout_s > _STALL_S
        return ["--stall-timeout", f"{self.request_timeout_s}s"] if longer else []


def has_bridge() -> bool:
    """Say whether the HTTP stack is installed: it is an extra."""
    return all(importlib.util.find_spec(name) is not None for name in ("starlette", "uvicorn"))


class Stack:
    """The roles of a plan, each started as soon as what it needs is there."""

    def __init__(self, plan: Plan, supervisor: Supervisor) -> None:
        self.plan = plan
        self._supervisor = supervisor
        self.broker = Child("broker", "zmqrt.broker", self._broker(plan.client_port, plan.worker_port))
        self.workers: list[Child] = []
        self.bridge: Child | None = None

    @property
    def clients(self) -> str | None:
        """Where clients connect, once the broker has said so."""
        return self.broker.endpoints.get("clients")

    @property
    def http(self) -> str | None:
        """Where the bridge listens, once it has said so."""
        return self.bridge.endpoints.get("http") if self.bridge is not None else None

    def start(self) -> None:
        """Start the broker; the others follow when it listens."""
        self._supervisor.add(self.broker)

    def step(self) -> None:
        """Supervise, and start what can be started now. Raises ChildFailedError."""
        self._supervisor.step()
        if self.broker.endpoints and not self.workers:
            self._follow_broker()
        if self.bridge is not None and self.bridge.endpoints:
            self.bridge.arguments = self._bridge(_port(self.bridge.endpoints["http"]))

    def in_order_of_leaving(self) -> list[Sequence[Child]]:
        """Return who is asked to leave when: who brings work first, who carries it last."""
        bridges = [self.bridge] if self.bridge is not None else []
        return [bridges, self.workers, [self.broker]]

    def drain(self, go_on: Callable[[], bool]) -> bool:
        """Let everybody finish, group by group, calling `go_on` meanwhile; False when that said to stop."""
        for group in self.in_order_of_leaving():
            self._supervisor.drain(group)
            while not self._supervisor.have_ended(group):
                if not go_on():
                    return False
        return True

    def _follow_broker(self) -> None:
        endpoints = self.broker.endpoints
        # Started anew, it has to come back where the others look for it.
        self.broker.arguments = self._broker(_port(endpoints["clients"]), _port(endpoints["workers"]))
        for number in range(self.plan.nodes):
            child = Child(f"node-{number}", "zmqrt.worker", self._worker(f"node-{number}", endpoints["workers"]))
            self.workers.append(self._supervisor.add(child))
        if self.plan.has_bridge:
            self.bridge = self._supervisor.add(Child("bridge", "zmqrt.bridge_http", self._bridge(self.plan.http_port)))

    def _broker(self, client_port: int, worker_port: int) -> list[str]:
        clients, workers = (f"tcp://{_LOOPBACK}:{port}" for port in (client_port, worker_port))
        return ["--clients", clients, "--workers", workers, *self.plan.common, *self.plan.timeout]

    def _worker(self, node_id: str, endpoint: str) -> list[str]:
        plan = self.plan
        return ["--broker", endpoint, "--node-id", node_id, *plan.common, *plan.stall, *plan.worker_arguments]

    def _bridge(self, port: int) -> list[str]:
        broker = self.broker.endpoints["clients"]
        plan = self.plan
        return ["--host", _LOOPBACK, "--port", str(port), "--broker", broker, *plan.common, *plan.timeout]


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def message_of(record: dict[str, Any]) -> str | None:
    """Return the words of a log record that a person should see; None for the rest."""
    if record.get("level") not in ("warning", "error", "critical"):
        return None
    return str(record.get("message", ""))
