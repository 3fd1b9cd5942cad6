"""Which job runs on which device: waiting jobs, tickets, and what engines say about them. Pure; knows no broker.

Theory of operation. A job that is ready waits in the queue of its service, first come, first served. Whenever a slot
may have become free (`_fill`), the queue's head goes to the device that `DevicePool.choose` names, under a new ticket.
From then on the engine alone says what becomes of the ticket: units, a result, a refusal. A job that is stopped keeps
its slot until the engine has confirmed that, so an engine is never given more than it has room for.

A job leaves its engine before its end in two ways, and goes back to the head of its queue: the engine was full after
all, or its process has ended. A second device then goes on where the first stopped, after the last unit in the log.

Every method that moves jobs returns those that have new units or have ended; what their brokers hear of it is for the
caller (`requests.py`) to say. Messages for the engines are appended to `out`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Final, assert_never

import msgspec

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from ..protocol.limits import MAX_FRAME_BYTES
from .actions import Action, Note, ToEngine
from .device_pool import Device, DevicePool, Lane
from .engines import ipc
from .engines.base import AnswerEnd, ItemResult, TokenEvent
from .jobs import Job, JobState

_LOCAL_RUNS: Final = 2
"""A job that was on an engine when it died is run once more on this node; after a second death the broker decides."""
_MOST_TEXT_BYTES: Final = MAX_FRAME_BYTES * 3 // 4
"""Of an answer of an engine that deals in text: nothing else ends one that keeps to no `max_tokens`. A whole answer
fits a frame; a peer that does not read is told so before, since this is more than a broker sends ahead and keeps."""
_encode: Final = msgspec.msgpack.Encoder().encode


class DeviceScheduler:
    """Runs jobs on the devices of the pool."""

    def __init__(self, pool: DevicePool, out: list[Action]) -> None:
        self._pool = pool
        self._out = out
        self._tickets = itertools.count(1)
        self._waiting: dict[str, deque[Job]] = {}
        self._moved: dict[Job, None] = {}
        """Jobs that have new units or have ended, in that order, for whoever called."""

    @property
    def waiting(self) -> int:
        """Jobs that wait for a slot."""
        return sum(map(len, self._waiting.values()))

    # --- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, job: Job, now: float) -> list[Job]:
        """Run a preprocessed job as soon as a slot is free."""
        job.move(JobState.WAITING)
        self._queue(job.service).append(job)
        self._fill(job.service, now)
        return self._take_moved()

    def stop(self, job: Job, cancelled_at: float | None = None) -> None:
        """Stop a job for good, wherever it is. Its slot is free when the engine says so.

        `cancelled_at`: somebody gave it up just now, and how long its slot stays taken is measured.
        """
        if job.state is JobState.WAITING:
            self._queue(job.service).remove(job)
        elif job.state is JobState.RUNNING:
            self._cancel_ticket(job, cancelled_at)
        if job.state is not JobState.DONE:
            job.move(JobState.DONE)

    def follow(self) -> None:
        """Let jobs that have made nothing yet move with the line that they stand in.

        A job that waits here comes nearer with whatever the engines make. In an engine of tokens that is so for what
        those before it do, in one of batches for every batch. Tasks of a stream engine run beside each other: none
        waits.
        """
        for service, queue in self._waiting.items():
            if queue:
                moved_at = max((lane.moved_at for _, lane in self._pool.lanes(service)), default=0.0)
                for job in queue:
                    job.moved_at = max(job.moved_at, moved_at)
        for device in self._pool.devices.values():
            for lane in device.lanes.values():
                if lane.info.kind != "stream":
                    lane.follow()

    def _queue(self, service: str) -> deque[Job]:
        return self._waiting.setdefault(service, deque())

    def _fill(self, service: str, now: float) -> None:
        queue = self._queue(service)
        while queue:
            chosen = self._pool.choose(service, now)
            if chosen is None:
                break
            self._run(queue.popleft(), *chosen, now)
        if queue and not self._pool.lanes(service):
            for job in list(queue):
                # What no engine has had costs no attempt: the outage is not its own.
                kind = ErrorKind.ENGINE_RESTARTED if job.ticket else ErrorKind.NO_SLOT
                self._fail(job, kind, f"no engine of {service} is running at the moment")

    def _run(self, job: Job, device: Device, lane: Lane, now: float) -> None:
        job.move(JobState.RUNNING)
        job.submitted_at = now
        job.device, job.ticket, job.run_from = device.info.id, next(self._tickets), job.total_n
        job.has_other_noise |= bool(job.run_from) and not lane.info.has_keyed_noise
        lane.running[job.ticket] = job
        message: ipc.ToEngine
        if job.prepared is not None:
            message = ipc.Submit(lane.info.name, job.prepared.request(job.ticket, job.ids))
        else:
            assert job.plain is not None
            delivered = {"delivered": list(job.pieces)} if job.pieces else {}
            message = ipc.SubmitTask(lane.info.name, job.ticket, {**job.plain.values, **delivered}, job.plain.length)
        self._out.append(ToEngine(job.device, message))

    def _cancel_ticket(self, job: Job, cancelled_at: float | None = None) -> None:
        """Ask the engine to stop; a ticket that is over already needs no word."""
        lane = self._pool.devices[job.device].lanes.get(job.service)
        if lane is not None and job.ticket in lane.running:
            lane.cancel(job.ticket, cancelled_at)
            self._out.append(ToEngine(job.device, ipc.CancelTicket(job.ticket)))

    def _fail(self, job: Job, kind: ErrorKind, text: str) -> None:
        self.stop(job)
        job.fail(kind, text)
        self._moved[job] = None

    def _take_moved(self) -> list[Job]:
        moved, self._moved = list(self._moved), {}
        return moved

    # --- engines -----------------------------------------------------------------------------------------------------

    def heard(self, device: Device, messages: Iterable[ipc.FromEngine], now: float) -> list[Job]:
        """Take in what a device's engine process sent. Several steps at once make each job move once."""
        for message in messages:
            self._take(device, message, now)
        return self._take_moved()

    def _take(self, device: Device, message: ipc.FromEngine, now: float) -> None:
        match message:
            case ipc.StepReport():  # first: nearly all are
                self._on_step(device, message, now)
            case ipc.EngineLoading(phase, percent, elapsed_s):
                device.loading(phase, percent, elapsed_s)
            case ipc.EngineReady(services):
                self._pool.ready(device, services, now)
                self._fill_all(device, now)
            case ipc.EngineFailed(error):
                for lane in device.lanes.values():
                    lane.is_blocked = True  # it hears nobody any more, and its end is reported in a moment
                self._out.append(Note("error", f"{device.info.id}: {error}"))
            case ipc.TextChunk():
                self._on_text(device, message, now)
            case ipc.Refused():
                self._on_refused(device, message, now)
            case _:
                assert_never(message)

    def exited(self, device: Device, reason: str, *, is_restarted: bool, now: float) -> list[Job]:
        """Run the jobs of an engine process that is gone elsewhere on this node, or end them."""
        services = list(device.lanes)
        for job in self._pool.forget_process(device, is_restarted=is_restarted):
            job.crashes += job.total_n == job.run_from  # what ran well for a while did not kill it
            job.first_at, job.is_accounted = None, False
            self._run_again(job)
            if not self._may_run_again(job):
                text = f"the engine on {device.info.id} ended while it worked on this request ({reason})"
                self._fail(job, ErrorKind.ENGINE_RESTARTED, text)
        for service in services:
            self._fill(service, now)
        return self._take_moved()

    def _run_again(self, job: Job) -> None:
        job.move(JobState.WAITING)
        self._queue(job.service).appendleft(job)

    def _may_run_again(self, job: Job) -> bool:
        """Decide about one more run here: not for what must not run twice, or may be what engines die of.

        What was lost elsewhere before is the broker's to judge: only it knows how many engines that cost.
        """
        is_repeatable = bool(job.flags & m.IDEMPOTENT) and (job.kind != "stream" or job.total_n == 0)
        may_crash = _LOCAL_RUNS if job.attempt == 1 else 1
        return is_repeatable and job.crashes < may_crash and bool(self._pool.lanes(job.service))

    def _on_step(self, device: Device, step: ipc.StepReport, now: float) -> None:
        batch = device.running
        device.stepped(step.stats, now)
        for event in step.events:
            self._on_event(device, event, batch, now)
        for result in step.results:
            self._on_result(device, result, batch, now)
        self._fill_all(device, now)

    def _fill_all(self, device: Device, now: float) -> None:
        for service, queue in self._waiting.items():
            if queue and service in device.lanes:
                self._fill(service, now)

    def _on_event(self, device: Device, event: TokenEvent, batch: int, now: float) -> None:
        lane, job = device.find(event.ticket)
        if lane is None:
            return
        if job is None and event.ticket in lane.cancelled:
            device.tokens_after_cancel += len(event.token_ids)
        if event.finish_reason is not None:
            device.release(lane, event.ticket, now)
        if job is None:
            return
        if job.first_at is None and (event.token_ids or event.finish_reason):
            job.begin(batch, now)
        lane.moved_at = job.moved_at = now
        if event.error is not None or job.prepared is None:
            text = event.error or "the engine answered with tokens where none were asked for"
            self._fail(job, ErrorKind.MODEL_RAISED, text)
            return
        before_n = len(job.pieces)
        reason = job.absorb(event)
        if len(job.pieces) > before_n:
            job.crashes = 0
            self._moved[job] = None
        if reason is None:
            return
        if reason == "cancelled":
            self._fail(job, ErrorKind.CANCELLED, "the engine gave the request up")
        else:
            self._cancel_ticket(job)  # the engine does not know of a stop string
            job.finish(reason, lane.info.model, lane.info.revision)
            self._moved[job] = None

    def _on_result(self, device: Device, result: ItemResult, batch: int, now: float) -> None:
        lane, job = device.find(result.ticket)
        if lane is None:
            return
        if job is not None:
            job.begin(batch, now)
        lane.moved_at = lane.turned_at = now
        device.release(lane, result.ticket, now)
        if job is None:
            return
        if result.body is None:
            kind = ErrorKind(result.refused) if result.refused else ErrorKind.MODEL_RAISED
            self._fail(job, kind, result.error or "the model gave no result")
            return
        body = _encode(result.body)
        if len(body) > MAX_FRAME_BYTES:
            text = f"the result has {len(body)} bytes, over the limit of {MAX_FRAME_BYTES}; send fewer inputs at once"
            self._fail(job, ErrorKind.TOO_LARGE, text)
            return
        job.end_well(body, {})
        self._moved[job] = None

    def _on_text(self, device: Device, chunk: ipc.TextChunk, now: float) -> None:
        lane, job = device.find(chunk.ticket)
        if lane is None:
            return
        if job is not None and job.first_at is None:
            job.begin(device.running, now)
        if chunk.done:
            device.release(lane, chunk.ticket, now)
        if job is None:
            return
        if chunk.error is not None:
            self._fail(job, ErrorKind(chunk.failure) if chunk.failure else ErrorKind.MODEL_RAISED, chunk.error)
            return
        lane.moved_at = job.moved_at = now
        if chunk.text:
            job.pieces.append(chunk.text)
            job.text_bytes += len(chunk.text.encode())
        if job.text_bytes > _MOST_TEXT_BYTES:
            text = f"the model has not ended its answer within {_MOST_TEXT_BYTES} bytes"
            self._fail(job, ErrorKind.TOO_LARGE, text)
            return
        if chunk.done:
            ending = chunk.ending or AnswerEnd()
            job.finish(ending.finish_reason, lane.info.model, lane.info.revision, ending)
        self._moved[job] = None

    def _on_refused(self, device: Device, refused: ipc.Refused, now: float) -> None:
        lane, job = device.find(refused.ticket)
        if lane is None:
            return
        device.release(lane, refused.ticket, now)
        lane.is_blocked = refused.full
        if job is None:
            return
        if refused.full:
            self._run_again(job)
            self._fill(job.service, now)
        else:
            self._fail(job, ErrorKind.BAD_REQUEST, refused.error)
