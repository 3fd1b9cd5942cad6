"""Shows an operator how far a node is: bars on a terminal, lines elsewhere, then one line that says it is ready."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Final, TextIO, cast

from .core import WorkerCore
from .device_pool import Device

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

log = logging.getLogger(__name__)

_LINE_PERCENT: Final = 25
"""Without a terminal: a line for each phase and each quarter of it."""


class StartupView:
    """Follows a core, pass by pass."""

    def __init__(self, core: WorkerCore, *, node_id: str, is_json: bool, client_endpoint: str | None = None) -> None:
        self._core = core
        self._node_id = node_id
        self._is_json = is_json
        self._client_endpoint = client_endpoint
        self.metrics_url: str | None = None
        self._is_announced = False
        self._shown: dict[str, tuple[str, int]] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        if sys.stderr.isatty() and not is_json:
            self._progress = _bars()

    def follow(self, now: float) -> None:
        """Show what has changed; cheap when nothing has."""
        for device in self._core.pool.devices.values():
            state = device.phase, int(device.percent)
            if self._shown.get(device.info.id) != state:
                self._show(device)
        if not self._is_announced and self._core.is_served(now):
            self._is_announced = True
            self.close()
            self._announce()

    def close(self) -> None:
        """Take the bars away."""
        if self._progress is not None:
            self._progress.stop()
            _log_to_standard_error()

    def _show(self, device: Device) -> None:
        name = device.info.id
        before = self._shown.get(name, ("", -1))
        self._shown[name] = device.phase, int(device.percent)
        if self._progress is not None and not self._is_announced:
            self._show_bar(self._progress, device)
        elif before[0] != device.phase or before[1] // _LINE_PERCENT != int(device.percent) // _LINE_PERCENT:
            percent = f" {device.percent:.0f} %" if device.phase != "ready" else ""
            log.info("%s: %s%s (%.1f s)", name, device.phase, percent, device.elapsed_s)

    def _show_bar(self, progress: Progress, device: Device) -> None:
        name = device.info.id
        if name not in self._bars:
            progress.start()
            _log_to_standard_error()
            self._bars[name] = progress.add_task(name, total=100)
        progress.update(self._bars[name], description=f"{name} {device.phase}", completed=device.percent)

    def _announce(self) -> None:
        pool = self._core.pool
        facts = {
            "event": "ready",
            "role": "worker",
            "node_id": self._node_id,
            "pid": os.getpid(),
            "endpoints": self._endpoints(),
            "services": [offer.service for offer in pool.offers()],
            "devices": list(pool.devices),
        }
        print(json.dumps(facts) if self._is_json else self._sentence(), flush=True)  # noqa: T201 - its only output

    def _endpoints(self) -> dict[str, str]:
        known = {
            "broker": ",".join(session.endpoint for session in self._core.sessions),
            "clients": self._client_endpoint,
            "metrics": self.metrics_url,
        }
        return {name: where for name, where in known.items() if where is not None}

    def _sentence(self) -> str:
        pool = self._core.pool
        services, devices = ", ".join(offer.service for offer in pool.offers()), ", ".join(pool.devices)
        text = f"zmqrt-worker {self._node_id} is ready: {services} on {devices}, broker {self._endpoints()['broker']}"
        return f"{text}; clients connect to {self._client_endpoint}" if self._client_endpoint is not None else text


def _bars() -> Progress:
    from rich.console import Console  # a fifth of the time that a node takes to start, for those who see bars only
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)


def _log_to_standard_error() -> None:
    """Let log handlers write where standard error leads now: while bars are shown, that is above them."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            cast("logging.StreamHandler[TextIO]", handler).setStream(sys.stderr)
