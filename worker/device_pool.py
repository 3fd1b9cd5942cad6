"""Knows the devices of the node: phase, free slots, load, and which one gets the next request. Pure.

A device is an engine process. Each of its services is a lane with slots of its own; what runs in a lane is known by
ticket. A ticket occupies its slot until the engine says that it is over, even when nobody waits for its result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.capabilities import RENDERING, shared_by
from ..protocol.errors import clip
from ..protocol.histogram import Histogram
from .engines import ipc
from .engines.base import EngineStats
from .jobs import Job

_PHASE_ORDER: Final[tuple[m.Phase, ...]] = (
    "failed", "restarting", "starting", "downloading", "converting", "loading", "warming", "ready"
)  # fmt: skip
"""From far to near: a node is as far as its foremost device, for that one will serve first."""


_FRESH_S: Final = 5.0
"""A driver is asked once a second; older numbers say nothing about now."""
_STALE_S: Final = 2.0
"""An engine shows itself every 250 ms, and after each step; longer steps than this are rare even on a small CPU."""


@dataclass(frozen=True, slots=True)
class GpuStats:
    """What the driver of a device says at the moment; None = it does not say.

    `busy_percent` is the share of the last moment in which a kernel ran.
    """

    memory_used_bytes: int | None = None
    busy_percent: int | None = None
    celsius: int | None = None


NO_GPU_STATS: Final = GpuStats()


@dataclass(slots=True)
class Lane:
    """One service on one device."""

    service: str
    info: ipc.EngineService
    running: dict[int, Job | None] = field(default_factory=dict[int, "Job | None"])
    """Tickets in the engine; None = given up, but its slot is not free yet."""
    cancelled: dict[int, float] = field(default_factory=dict[int, float])
    """Those that somebody has cancelled, and when: how long their slots stay taken is measured."""
    is_blocked: bool = False
    """The engine said that it is full although slots seemed free; nothing goes there until its next sign."""
    stats: EngineStats = field(default_factory=EngineStats)
    moved_at: float = 0.0
    """When anything came of a request here."""
    turned_at: float = 0.0
    """When the first of its line was over, so that those behind it have come nearer."""

    @property
    def free(self) -> int:
        """Slots that may be filled now."""
        return 0 if self.is_blocked else max(0, self.info.capacity.slots - len(self.running))

    def cancel(self, ticket: int, cancelled_at: float | None) -> None:
        """Note that nobody wants a ticket any more; its slot is free when the engine says so."""
        self.running[ticket] = None
        if cancelled_at is not None:
            self.cancelled[ticket] = cancelled_at

    def follow(self) -> None:
        """Let jobs that have made nothing yet move with those before them: the engine takes them in that order."""
        moved_at = self.turned_at
        for job in self.running.values():  # the oldest first
            if job is None:
                continue
            if job.waits_in_line:
                job.moved_at = max(job.moved_at, moved_at)
            moved_at = max(moved_at, job.moved_at)

    @property
    def load(self) -> float:
        """How full it is (0..1)."""
        return len(self.running) / max(1, self.info.capacity.slots)


@dataclass(slots=True)
class Device:
    """One engine process and its lanes. Counters of earlier processes are kept in `before`."""

    info: m.DeviceInfo
    phase: m.Phase = "starting"
    percent: float = 0.0
    elapsed_s: float = 0.0
    lanes: dict[str, Lane] = field(default_factory=dict[str, Lane])
    last_step_at: float = 0.0
    restarts: int = 0
    before: EngineStats = field(default_factory=EngineStats)
    cancel_latency: Histogram = field(default_factory=Histogram)
    """From a cancel to the freed slot."""
    tokens_after_cancel: int = 0
    gpu: GpuStats = NO_GPU_STATS
    gpu_at: float = 0.0
    reported: tuple[m.Phase, float] = ("starting", 0.0)
    """Phase and percent of the last heartbeat."""
    fallback: str = ""
    """Why it stands in for another device."""

    @property
    def is_ready(self) -> bool:
        """Whether requests may run here. The phase alone would not do: a factory may call itself ready too soon."""
        return self.phase == "ready" and bool(self.lanes)

    @property
    def running(self) -> int:
        """Requests in the engine."""
        return sum(len(lane.running) for lane in self.lanes.values())

    def find(self, ticket: int) -> tuple[Lane | None, Job | None]:
        """Return the lane of a live ticket, and the job if anybody still wants it."""
        for lane in self.lanes.values():
            if ticket in lane.running:
                return lane, lane.running[ticket]
        return None, None

    def release(self, lane: Lane, ticket: int, now: float) -> None:
        """Take the engine's word that a ticket is over: its slot is free."""
        if next(iter(lane.running)) == ticket:
            lane.turned_at = now
        del lane.running[ticket]
        cancelled_at = lane.cancelled.pop(ticket, None)
        if cancelled_at is not None:
            self.cancel_latency.add(now - cancelled_at)

    def stepped(self, stats: Mapping[str, EngineStats], now: float) -> None:
        """Note a sign of life of the engine's loop."""
        self.last_step_at = now
        for lane in self.lanes.values():
            lane.is_blocked = False
            lane.stats = stats.get(lane.info.name, lane.stats)

    def loop_age_s(self, now: float) -> float:
        """How long the engine's loop has not shown itself; an engine that is loading has none."""
        return max(0.0, now - self.last_step_at) if self.is_ready else 0.0

    def has_news(self) -> bool:
        """Whether progress is worth a heartbeat of its own."""
        phase, percent = self.reported
        return phase != self.phase or abs(self.percent - percent) >= 5

    def was_reported(self) -> None:
        """Note that a heartbeat has gone out."""
        self.reported = self.phase, self.percent

    def loading(self, phase: m.Phase, percent: float, elapsed_s: float) -> None:
        """Note how far it is. What a thread or a process of its engine says once that serves is late."""
        if not self.lanes:
            self.phase, self.percent, self.elapsed_s = phase, percent, elapsed_s

    def forget_process(self, *, is_restarted: bool) -> list[Job]:
        """Note that the process is gone; return the jobs that it leaves behind."""
        self.restarts += is_restarted
        left = [job for lane in self.lanes.values() for job in lane.running.values() if job is not None]
        self.before = self._totals()
        self.lanes.clear()
        self.phase, self.percent = "restarting" if is_restarted else "failed", 0.0
        return left

    def report(self, now: float) -> m.DeviceLoad:
        """Describe this moment for a heartbeat."""
        lanes, totals = self.lanes.values(), self._totals()
        gpu = self.gpu if now - self.gpu_at <= _FRESH_S else NO_GPU_STATS
        return m.DeviceLoad(
            id=self.info.id,
            phase=self.phase,
            percent=min(100, int(self.percent)),
            elapsed_ms=int(1000 * self.elapsed_s),
            capacity=sum(lane.info.capacity.slots for lane in lanes),
            running=self.running,
            waiting=sum(lane.stats.waiting for lane in lanes),
            kv_percent=min(100, max((lane.stats.kv_percent for lane in lanes), default=0)),
            loop_age_ms=int(1000 * self.loop_age_s(now)),
            steps=totals.steps,
            tokens=totals.tokens,
            largest_batch=totals.largest_batch,
            restarts=self.restarts,
            prompt_tokens=totals.prompt_tokens,
            reused_tokens=totals.reused_tokens,
            memory_used_bytes=gpu.memory_used_bytes,
            busy_percent=gpu.busy_percent,
            celsius=gpu.celsius,
            tokens_after_cancel=self.tokens_after_cancel,
            cancel_counts=self.cancel_latency.counts[:] if self.cancel_latency.total_s else [],
            cancel_us=round(1e6 * self.cancel_latency.total_s),
            fallback=clip("; ".join(filter(None, [self.fallback, *(lane.info.fallback for lane in lanes)]))),
        )

    def _totals(self) -> EngineStats:
        """Add up the counters of all lanes, and of processes before this one."""
        every = [self.before, *(lane.stats for lane in self.lanes.values())]
        return EngineStats(
            steps=sum(stats.steps for stats in every),
            tokens=sum(stats.tokens for stats in every),
            largest_batch=max(stats.largest_batch for stats in every),
            prompt_tokens=sum(stats.prompt_tokens for stats in every),
            reused_tokens=sum(stats.reused_tokens for stats in every),
        )


class DevicePool:
    """All devices of the node."""

    def __init__(
        self,
        devices: list[m.DeviceInfo],
        *,
        served: str,
        batch_max_size: int,
        context: int,
        fallbacks: Mapping[str, str] | None = None,
    ) -> None:
        self.devices = {info.id: Device(info, fallback=(fallbacks or {}).get(info.id, "")) for info in devices}
        self._served = served
        self._offers: dict[str, m.ServiceOffer] = {}
        """Services as last known; one whose engines are all gone is offered with no room, so that requests wait."""
        self._lanes: dict[str, list[tuple[Device, Lane]]] = {}
        """By service, on devices that are ready: looked at for each request, changed when an engine comes or goes."""
        self._room: dict[str, int] = {}
        self._capacity = 0
        self._batch = batch_max_size
        self._most_context = context

    def learn(self, stats: Mapping[str, GpuStats], now: float) -> None:
        """Keep what the drivers say of their devices."""
        for name, gpu in stats.items():
            self.devices[name].gpu, self.devices[name].gpu_at = gpu, now

    @property
    def serving(self) -> list[Device]:
        """Devices on which requests may run now."""
        return [device for device in self.devices.values() if device.is_ready]

    def service_name(self, suffix: str) -> str:
        """Name a service in public: the served model name and what the engine adds to it, or a name of the engine's."""
        if suffix.startswith("="):
            return suffix[1:]
        if not suffix:
            return self._served
        return self._served + (suffix if suffix[0] in ":-./_" else "-" + suffix)

    def ready(self, device: Device, services: list[ipc.EngineService], now: float) -> None:
        """Open the lanes of a device that has loaded."""
        named = {self.service_name(service.name): service for service in services}
        device.lanes = {name: Lane(name, service) for name, service in named.items()}
        device.phase, device.percent, device.last_step_at = "ready", 100.0, now
        self._regroup()

    def forget_process(self, device: Device, *, is_restarted: bool) -> list[Job]:
        """Close the lanes of a device whose process is gone; return the jobs that it leaves behind."""
        left = device.forget_process(is_restarted=is_restarted)
        self._regroup()
        return left

    def _regroup(self) -> None:
        self._lanes, self._room = {}, {}
        for device in self.serving:
            for name, lane in device.lanes.items():
                self._lanes.setdefault(name, []).append((device, lane))
        for name, lanes in self._lanes.items():
            self._room[name] = sum(lane.info.capacity.slots + self._batch for _, lane in lanes)
        self._capacity = sum(self._room.values())

    def lanes(self, service: str) -> list[tuple[Device, Lane]]:
        """Return the lanes of a service on devices that are ready."""
        return self._lanes.get(service, [])

    def choose(self, service: str, now: float) -> tuple[Device, Lane] | None:
        """Return the least loaded device with a free slot; one whose loop stands still only if there is no other."""
        free = [(device, lane) for device, lane in self.lanes(service) if lane.free > 0]
        if len(free) < 2:
            return free[0] if free else None
        return min(free, key=lambda pair: (pair[0].loop_age_s(now) > _STALE_S, pair[1].load, pair[0].restarts))

    def room(self, service: str) -> int:
        """Say how many requests of a service the node holds: slots, and one batch more so that no device idles."""
        return self._room.get(service, 0)

    def capacity(self) -> int:
        """Say how many requests all engines hold."""
        return self._capacity

    def info(self, service: str) -> ipc.EngineService | None:
        """Return what the engines say of a service."""
        found = self.lanes(service)
        return found[0][1].info if found else None

    def context(self, service: str) -> int:
        """Return the context of a service: the smallest of its engines', bounded by the settings."""
        bounds = [self._most_context]
        for _, lane in self.lanes(service):
            bounds += (lane.info.capacity.context, lane.info.capacity.kv_tokens)  # one request fits the pool alone
        return min((bound for bound in bounds if bound > 0), default=0)

    def offers(self) -> list[m.ServiceOffer]:
        """List the services for READY and HEARTBEAT; before anything has loaded, the one that is coming."""
        for name in list(self._offers):
            self._offers[name] = msgspec.structs.replace(self._offers[name], max_inflight=0)
        for name in dict.fromkeys(name for device in self.serving for name in device.lanes):
            self._offers[name] = self._offer(name)
        return list(self._offers.values()) or [m.ServiceOffer(self._served, 0, "generate")]

    def _offer(self, service: str) -> m.ServiceOffer:
        info = self.info(service)
        assert info is not None
        return m.ServiceOffer(
            service=service,
            max_inflight=self.room(service),
            task=info.task,
            model=info.model,
            revision=info.revision,
            context=self.context(service),
            capabilities=self._capabilities(service),
        )

    def _capabilities(self, service: str) -> list[str]:
        """Say what all engines of a service can do: nobody asks which of them gets a request.

        Those that take tokens get them from this agent, which renders conversations.
        """
        infos = [lane.info for _, lane in self.lanes(service)]
        ours = {RENDERING} if any(info.kind == "token" for info in infos) else set[str]()
        return sorted(shared_by(frozenset(info.capabilities) for info in infos) | ours)

    def knows(self, service: str) -> bool:
        """Whether the service is, was, or may be about to be here."""
        return any(offer.service == service for offer in self.offers())

    def loop_age_s(self, now: float) -> float:
        """Return the age of the liveliest engine: the node serves as long as one does."""
        return min((device.loop_age_s(now) for device in self.serving), default=0.0)

    def foremost(self) -> Device:
        """Return the device that is ready, or will be first."""
        return max(self.devices.values(), key=lambda device: (_PHASE_ORDER.index(device.phase), device.percent))
