"""Which job runs on which device: waiting jobs, tickets, and what engines say about them. Pure; knows no broker.

What happens to a job is told to a `Listener`: units it has made, and that it is over. Everything for the engines is
appended to `out`.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Final, Protocol, assert_never

import msgspec

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from ..protocol.limits import MAX_FRAME_BYTES
from .actions import Action, Note, ToEngine
from .device_pool import Device, DevicePool, Lane
from .engines import ipc
from .engines.base import FinishReason, ItemResult, TokenEvent
from .jobs import Job, JobState

_LOCAL_RUNS: Final = 2
"""A job that was on an engine when it died is run once more on this node; after a second death the broker decides."""


class Listener(Protocol):
    """Whoever owns the jobs."""

    def progressed(self, job: Job, since: int) -> None:
        """Send the units from `since` on: they are new."""
        ...

    def completed(self, job: Job) -> None:
        """Send a job's outcome."""
        ...

    def failed(self, job: Job, kind: ErrorKind, text: str) -> None:
        """End a job without a result."""
        ...


class DeviceScheduler:
    """Runs jobs on the devices."""

    def __init__(self, pool: DevicePool, listener: Listener, out: list[Action]) -> None:
        self.pool = pool
        self._listener = listener
        self._out = out
        self._tickets = itertools.count(1)
        self._waiting: dict[str, deque[Job]] = {}

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    # --- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, job: Job, now: float) -> None:
        """Run a prepared job as soon as a slot is free."""
        job.move(JobState.WAITING)
        self._queue(job.service).append(job)
        self.fill(job.service, now)

    def abort(self, job: Job, cancelled_at: float | None = None) -> None:
        """Stop a job wherever it is; nothing is told about it any more. Its slot frees when the engine says so.

        `cancelled_at`: somebody gave it up just now, and how long its slot stays taken is measured.
        """
        if job.state is JobState.WAITING:
            self._queue(job.service).remove(job)
        elif job.state is JobState.RUNNING:
            self._give_up_ticket(job, cancelled_at)
        if job.state is not JobState.DONE:
            job.move(JobState.DONE)

    def fill(self, service: str, now: float) -> None:
        """Give waiting jobs of a service to devices with a free slot."""
        queue = self._queue(service)
        while queue:
            chosen = self.pool.choose(service, now)
            if chosen is None:
                break
            self._run(queue.popleft(), *chosen, now)
        if queue and not self.pool.lanes(service):
            for job in list(queue):
                self._listener.failed(
                    job, ErrorKind.ENGINE_RESTARTED, f"no engine of {service} is running at the moment"
                )

    def follow(self) -> None:
        """Let those that have made nothing yet move with the line that they stand in.

        Whoever waits here comes nearer with whatever the engines make. In an engine of tokens that is so for what those
        before it do, in one of batches for every batch. Tasks of a stream engine run beside each other: none waits.
        """
        for service, queue in self._waiting.items():
            if queue:
                moved_at = max((lane.moved_at for _, lane in self.pool.lanes(service)), default=0.0)
                for job in queue:
                    job.moved_at = max(job.moved_at, moved_at)
        for device in self.pool.devices.values():
            for lane in device.lanes.values():
                if lane.info.kind != "stream":
                    _follow_lane(lane)

    def _queue(self, service: str) -> deque[Job]:
        return self._waiting.setdefault(service, deque())

    def _run(self, job: Job, device: Device, lane: Lane, now: float) -> None:
        job.move(JobState.RUNNING)
        job.submitted_at = now
        job.device, job.ticket, job.run_from = device.info.id, next(self._tickets), job.total_n
        lane.running[job.ticket] = job
        message: ipc.ToEngine
        if job.prepared is not None:
            message = ipc.Submit(lane.info.name, job.prepared.request(job.ticket, job.ids))
        else:
            assert job.plain is not None
            message = ipc.SubmitTask(lane.info.name, job.ticket, job.plain.values, job.plain.length)
        self._out.append(ToEngine(job.device, message))

    def _give_up_ticket(self, job: Job, cancelled_at: float | None = None) -> None:
        """Free the slot as soon as the engine confirms; a ticket that is over already needs no word."""
        lane = self.pool.devices[job.device].lanes.get(job.service)
        if lane is not None and job.ticket in lane.running:
            lane.running[job.ticket] = None
            if cancelled_at is not None:
                lane.given_up[job.ticket] = cancelled_at
            self._out.append(ToEngine(job.device, ipc.CancelTicket(job.ticket)))

    # --- engines -----------------------------------------------------------------------------------------------------

    def heard(self, device: Device, message: ipc.FromEngine, now: float) -> None:
        """Take in one message of a device's engine process."""
        match message:
            case ipc.EngineLoading(phase, percent, elapsed_s):
                device.phase, device.percent, device.elapsed_s = phase, percent, elapsed_s
            case ipc.EngineReady(services):
                self.pool.ready(device, services, now)
                self._fill_all(device, now)
            case ipc.EngineFailed(error):
                self._out.append(Note("error", f"{device.info.id}: {error}"))
            case ipc.TextChunk():
                self._on_text(device, message, now)
            case ipc.Refused():
                self._on_refused(device, message, now)
            case ipc.StepReport():
                self._on_step(device, message, now)
            case _:
                assert_never(message)

    def exited(self, device: Device, reason: str, phase: m.Phase, now: float) -> None:
        """Run the jobs of an engine process that is gone elsewhere on this node, or give them back."""
        services = list(device.lanes)
        for job in device.forget_process(phase):
            job.crashes += job.total_n == job.run_from  # what ran well for a while did not kill it
            job.first_at, job.is_told = None, False
            job.move(JobState.WAITING)
            self._queue(job.service).appendleft(job)
            if not self._may_run_again(job):
                text = f"the engine on {device.info.id} ended while it worked on this request ({reason})"
                self._listener.failed(job, ErrorKind.ENGINE_RESTARTED, text)
        for service in services:
            self.fill(service, now)

    def _may_run_again(self, job: Job) -> bool:
        """Decide about one more run here: not for what must not run twice, or may be what engines die of.

        What was lost elsewhere before is the broker's to judge: only it knows how many engines that cost.
        """
        is_repeatable = bool(job.flags & m.IDEMPOTENT) and (job.kind != "stream" or job.total_n == 0)
        may_crash = _LOCAL_RUNS if job.attempt == 1 else 1
        return is_repeatable and job.crashes < may_crash and bool(self.pool.lanes(job.service))

    def _on_step(self, device: Device, step: ipc.StepReport, now: float) -> None:
        device.last_step_at = now
        batch = device.running
        for lane in device.lanes.values():
            lane.is_blocked = False
            lane.stats = step.stats.get(lane.info.name, lane.stats)
        for event in step.events:
            self._on_event(device, event, batch, now)
        for result in step.results:
            self._on_result(device, result, batch, now)
        self._fill_all(device, now)

    def _fill_all(self, device: Device, now: float) -> None:
        for service in list(device.lanes):
            self.fill(service, now)

    def _on_event(self, device: Device, event: TokenEvent, batch: int, now: float) -> None:
        lane, job = _find(device, event.ticket)
        if job is not None and job.first_at is None and (event.token_ids or event.finish_reason):
            job.begin(batch, now)
        if lane is not None and event.ticket in lane.given_up:
            device.tokens_after_cancel += len(event.token_ids)
        if lane is not None and event.finish_reason is not None:
            _free(device, lane, event.ticket, now)
        if lane is None or job is None:
            return
        lane.moved_at = job.moved_at = now
        if event.error is not None or job.prepared is None:
            text = event.error or "the engine answered with tokens where none were asked for"
            self._listener.failed(job, ErrorKind.MODEL_RAISED, text)
            return
        since = job.total_n
        reason = job.absorb(event)
        if job.total_n > since:
            job.crashes = 0
            self._listener.progressed(job, since)
        if reason == "cancelled":
            self._listener.failed(job, ErrorKind.CANCELLED, "the engine gave the request up")
        elif reason is not None:
            self._give_up_ticket(job)
            self._finish(job, reason, lane)

    def _finish(self, job: Job, reason: FinishReason, lane: Lane) -> None:
        job.finish(reason, lane.info.model, lane.info.revision)
        job.move(JobState.DONE)
        self._listener.completed(job)

    def _on_result(self, device: Device, result: ItemResult, batch: int, now: float) -> None:
        lane, job = _find(device, result.ticket)
        if lane is None:
            return
        if job is not None:
            job.begin(batch, now)
        lane.moved_at = lane.turned_at = now
        _free(device, lane, result.ticket, now)
        if job is None:
            return
        if result.body is None:
            kind = ErrorKind(result.refused) if result.refused else ErrorKind.MODEL_RAISED
            self._listener.failed(job, kind, result.error or "the model gave no result")
            return
        body = _encode(result.body)
        if len(body) > MAX_FRAME_BYTES:
            text = f"the result has {len(body)} bytes, over the limit of {MAX_FRAME_BYTES}; send fewer inputs at once"
            self._listener.failed(job, ErrorKind.TOO_LARGE, text)
            return
        job.finish_plain(body)
        job.move(JobState.DONE)
        self._listener.completed(job)

    def _on_text(self, device: Device, chunk: ipc.TextChunk, now: float) -> None:
        lane, job = _find(device, chunk.ticket)
        if job is not None and job.first_at is None:
            job.begin(device.running, now)
        if lane is not None and chunk.done:
            _free(device, lane, chunk.ticket, now)
        if lane is None or job is None:
            return
        if chunk.error is not None:
            self._listener.failed(job, ErrorKind.MODEL_RAISED, chunk.error)
            return
        lane.moved_at = job.moved_at = now
        if chunk.text:
            job.absorb_text(chunk.text)
            self._listener.progressed(job, job.total_n - 1)
        if chunk.done:
            self._finish(job, "stop", lane)

    def _on_refused(self, device: Device, refused: ipc.Refused, now: float) -> None:
        lane, job = _find(device, refused.ticket)
        if lane is None:
            return
        _free(device, lane, refused.ticket, now)
        lane.is_blocked = refused.full
        if job is None:
            return
        if not refused.full:
            self._listener.failed(job, ErrorKind.BAD_REQUEST, refused.error)
            return
        job.move(JobState.WAITING)
        self._queue(job.service).appendleft(job)
        self.fill(job.service, now)


_encode: Final = msgspec.msgpack.Encoder().encode


def _free(device: Device, lane: Lane, ticket: int, now: float) -> None:
    """Take the word of an engine that a ticket is over: its slot is free."""
    if next(iter(lane.running)) == ticket:
        lane.turned_at = now
    del lane.running[ticket]
    cancelled_at = lane.given_up.pop(ticket, None)
    if cancelled_at is not None:
        device.cancel_latency.add(now - cancelled_at)


def _follow_lane(lane: Lane) -> None:
    moved_at = lane.turned_at
    for job in lane.running.values():  # the oldest first
        if job is None:
            continue
        if job.waits_in_line:
            job.moved_at = max(job.moved_at, moved_at)
        moved_at = max(moved_at, job.moved_at)


def _find(device: Device, ticket: int) -> tuple[Lane | None, Job | None]:
    """Find the lane of a live ticket, and the job if anybody still wants it."""
    for lane in device.lanes.values():
        if ticket in lane.running:
            return lane, lane.running[ticket]
    return None, None
