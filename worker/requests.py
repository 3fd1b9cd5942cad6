"""The table of requests of a node: accepts or refuses dispatches, and reports to brokers what becomes of them. Pure.

A job belongs to the broker that dispatched it and to no other. While that broker is away nothing is sent; the log of
the job keeps everything, and `replay` sends it from wherever the broker stands when it is back.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.errors import TABLE, ErrorKind, RequestError, clip
from .actions import Action, Level, Note, Preprocess, Send
from .broker_sessions import BrokerSession
from .device_pool import Device, DevicePool, Lane
from .device_scheduler import DeviceScheduler
from .engines import ipc
from .jobs import Job
from .preprocess import PreparedGeneration, PreparedTask, Preprocessor, ServiceLimits

_DEADLINE_GRACE_S: Final = 1.0
"""The broker's deadline comes first: its answer names the reason better."""
_REPORTS: Final = 4
"""How often within its time a request's broker hears of progress that no units tell of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Settings of the core."""

    worker_uuid: bytes
    node_id: str
    capacity: int
    """NODE_MAX_CAPACITY: requests at once, whatever the engines could hold."""
    default_max_tokens: int
    stall_s: float
    """An engine whose loop stands still so long is killed."""
    held_s: float = 2.0
    """Leases outlive their connection by the broker's grace (1 s) and a second more."""
    ext: m.Ext
    jitter: Callable[[], float] = lambda: 1.0
    """Factor of each heartbeat interval, so that the beats of many nodes spread."""


class JobTable:
    """All jobs of the node. `is_closed` once it drains."""

    def __init__(
        self, config: NodeConfig, pool: DevicePool, sessions: Sequence[BrokerSession], out: list[Action]
    ) -> None:
        self.jobs: dict[tuple[int, str, bytes], Job] = {}
        self.preprocessor = Preprocessor()
        self.scheduler = DeviceScheduler(pool, out)
        self.is_closed = False
        self._config = config
        self._pool = pool
        self._sessions = sessions
        self._out = out
        self._numbers = itertools.count(1)
        self._preparing: dict[int, Job] = {}
        self._per_service: Counter[str] = Counter()
        self._finished: deque[tuple[float, BrokerSession, Job]] = deque()
        self._swept_at = 0.0
        self._limits: dict[str, tuple[list[tuple[Device, Lane]], ServiceLimits]] = {}
        """By service, with the lanes that they are of: the pool makes new lists when engines come and go."""

    # --- from brokers ------------------------------------------------------------------------------------------------

    def dispatch(self, session: BrokerSession, dispatch: m.Dispatch, now: float) -> None:
        """Accept a request, or refuse it."""
        session.received += 1
        self._supersede(session, dispatch)
        info = self._pool.info(dispatch.service)
        if info is None or self.is_closed or not self._has_room(dispatch.service):
            self._refuse_dispatch(session, dispatch)
            return
        job = Job(next(self._numbers), session.broker, dispatch, info.kind, now)
        self.jobs[job.key] = session.leases[job.lease] = self._preparing[job.number] = job
        self._per_service[job.service] += 1
        self._preprocess(job, dispatch, self._limits_of(job.service, info), now)

    def _limits_of(self, service: str, info: ipc.EngineService) -> ServiceLimits:
        """Return what a service allows; it stays as long as its lanes do."""
        lanes = self._pool.lanes(service)
        known = self._limits.get(service)
        if known is not None and known[0] is lanes:
            return known[1]
        limits = ServiceLimits(
            service=service,
            kind=info.kind,
            task=info.task,
            context=self._pool.context(service),
            default_max_tokens=self._config.default_max_tokens,
            vocabulary=info.capacity.vocabulary,
            resumes=info.resumes,
            capabilities=frozenset(info.capabilities),
        )
        self._limits[service] = lanes, limits
        return limits

    def _preprocess(self, job: Job, dispatch: m.Dispatch, limits: ServiceLimits, now: float) -> None:
        """Do it at once if it takes milliseconds; else the agent does it beside its loop."""
        try:
            needs_pool = self.preprocessor.needs_pool(dispatch.body, limits)
        except RequestError as error:
            self.prepared(job.number, error, now)
            return
        if needs_pool or self.preprocessor.is_long(dispatch):
            self._out.append(Preprocess(job.number, dispatch, limits, needs_pool))
        else:
            self.prepared(job.number, self.preprocessor.run(dispatch, limits), now)

    def _refuse_dispatch(self, session: BrokerSession, dispatch: m.Dispatch) -> None:
        service, node_id = dispatch.service, self._config.node_id
        if self.is_closed:
            self.refuse(session, dispatch.lease, ErrorKind.DRAINING, f"node {node_id} is draining")
        elif not self._pool.knows(service):
            self.refuse(session, dispatch.lease, ErrorKind.NOT_FOUND, f"node {node_id} does not serve {service!r}")
        else:
            self.refuse(session, dispatch.lease, ErrorKind.NO_SLOT, f"node {node_id} has no free slot for {service!r}")
            session.refused.add(service)

    def _supersede(self, session: BrokerSession, dispatch: m.Dispatch) -> None:
        """Drop what a dispatch replaces: an older lease of its own broker, and of brokers that are lost.

        One of a broker that is well goes on beside it. A broker that stood still for a while gives out requests that
        their client has long taken to another one; a node cannot tell which of the two is wanted, the brokers can.
        """
        for other in self._sessions:
            older = self.jobs.get((other.broker, dispatch.user, dispatch.rid))
            if older is not None and (other is session or not other.is_active):
                self.drop(other, older)
        same = session.leases.get(dispatch.lease)
        if same is not None:
            self.drop(session, same)

    def cancel(self, session: BrokerSession, lease: int, now: float) -> None:
        """Stop a lease; nothing is answered."""
        job = session.leases.get(lease)
        if job is not None:
            self.drop(session, job, cancelled_at=now)

    def prepared(self, number: int, result: PreparedGeneration | PreparedTask | RequestError, now: float) -> None:
        """Take a preprocessed request; its job may be gone by now."""
        job = self._preparing.pop(number, None)
        for other in self._preparing.values():
            other.moved_at = now
        if job is None:
            return
        job.moved_at = now
        if isinstance(result, RequestError):
            if result.__cause__ is not None:
                text = "a request could not be encoded"
                self._out.append(Note("error", text, job.request_id, job.trace_id, job.rid.hex(), result.__cause__))
            self._fail(job, result.kind, result.text)
            return
        if isinstance(result, PreparedTask):
            job.set_plain(result)
        else:
            job.set_prepared(result)
            if result.finish_reason is not None:
                # Nothing is left to generate: the node before was lost between its last unit and FINAL.
                info = self._pool.info(job.service)
                job.finish(result.finish_reason, info.model if info else "", info.revision if info else "")
                self._report([job])
                return
        self._report(self.scheduler.submit(job, now))

    def is_preparing(self, number: int) -> bool:
        """Whether a preprocessed request is still wanted."""
        return number in self._preparing

    # --- from engines ------------------------------------------------------------------------------------------------

    def engine_sent(self, device: Device, messages: Sequence[ipc.FromEngine], now: float) -> None:
        """Handle what an engine process sent, and report what came of it: several steps go out together."""
        self._report(self.scheduler.heard(device, messages, now))

    def engine_exited(self, device: Device, reason: str, *, is_restarted: bool, now: float) -> None:
        """Note that an engine process is gone."""
        self._report(self.scheduler.exited(device, reason, is_restarted=is_restarted, now=now))

    # --- to brokers --------------------------------------------------------------------------------------------------

    def _report(self, jobs: Iterable[Job]) -> None:
        """Send the new units of jobs, and the outcomes of those that have ended.

        Outcomes are kept for a moment: if the connection breaks now, the lease can still be claimed.
        """
        for job in jobs:
            session = self._sessions[job.broker]
            if session.is_active:
                self.send_partial(session, job)
            if job.outcome is None:
                continue
            if isinstance(job.outcome, m.WorkerError):
                level: Level = "info" if job.outcome.code < 500 else "warning"
                text = f"{job.outcome.code} {job.outcome.text}"
                self._out.append(Note(level, text, job.request_id, job.trace_id, job.rid.hex()))
            self._remove(job)
            if session.is_active:
                self._send_outcome(session, job)
            self._finished.append((self._swept_at + self._config.held_s, session, job))

    def _fail(self, job: Job, kind: ErrorKind, text: str) -> None:
        self.scheduler.stop(job)
        job.fail(kind, text)
        self._report([job])

    def replay(self, session: BrokerSession, job: Job, next_n: int) -> None:
        """Go on under a lease that was rebound: send again what the broker has not got."""
        if next_n > job.total_n:
            self.drop(session, job)
            text = f"unit {next_n} is beyond the {job.total_n} made here"
            self.refuse(session, job.lease, ErrorKind.ENGINE_RESTARTED, text)
            return
        job.sent_n = next_n
        self.send_partial(session, job)
        if job.outcome is not None:
            self._send_outcome(session, job)

    def refuse(self, session: BrokerSession, lease: int, kind: ErrorKind, text: str) -> None:
        """End a lease that has no job."""
        row, limit = TABLE[kind], self.grant(session)
        ext: m.Ext = {"crashes": 0} if kind is ErrorKind.ENGINE_RESTARTED else {}  # no engine died of it
        error = m.WorkerError(session.epoch, lease, row.code, kind.value, row.redispatch, limit, clip(text), ext)
        self._send(session, error)

    def drop(self, session: BrokerSession, job: Job, *, cancelled_at: float | None = None) -> None:
        """Forget a job without a word."""
        self.scheduler.stop(job, cancelled_at)
        self._remove(job)
        session.leases.pop(job.lease, None)

    def _remove(self, job: Job) -> None:
        self._preparing.pop(job.number, None)
        if self.jobs.get(job.key) is job:
            del self.jobs[job.key]
            self._per_service[job.service] -= 1

    def send_partial(self, session: BrokerSession, job: Job) -> None:
        """Send the units that have not been sent, if anybody wants them before the end."""
        if not job.has_partials:
            return
        total_n, first = len(job.pieces), job.sent_n
        while first < total_n:
            job.reported_at = job.moved_at
            ext: m.Ext = {} if job.is_accounted else job.account()
            end = job.end_of_partial()
            partial = m.WorkerPartial(session.epoch, job.lease, first, end - first, job.body(first, end), ext)
            self._out.append(Send(session.broker, partial))
            job.sent_n = first = end

    def _send_outcome(self, session: BrokerSession, job: Job) -> None:
        outcome = job.outcome
        assert outcome is not None
        is_account_due = isinstance(outcome, m.WorkerFinal) and not job.is_accounted
        ext = job.account() if is_account_due else outcome.ext
        limit = self.grant(session)
        self._send(session, msgspec.structs.replace(outcome, epoch=session.epoch, dispatch_limit=limit, ext=ext))
        if isinstance(outcome, m.WorkerError) and outcome.reason == ErrorKind.NO_SLOT.value:
            session.refused.add(job.service)  # the broker sends nothing more until it hears of a higher limit

    def _send(self, session: BrokerSession, message: m.FromWorker) -> None:
        self._out.append(Send(session.broker, message))

    # --- credit ------------------------------------------------------------------------------------------------------

    def raise_limit(self, session: BrokerSession) -> bool:
        """Raise what a broker may send to what is free now; say whether that is more than it knows of."""
        return session.grant(self._capacity() - len(self.jobs), self._has_room)

    def grant(self, session: BrokerSession) -> int:
        """Return the limit to tell a broker in whatever goes out now."""
        self.raise_limit(session)
        return session.dispatch_limit

    def _capacity(self) -> int:
        return 0 if self.is_closed else min(self._config.capacity, self._pool.capacity())

    def _has_room(self, service: str) -> bool:
        return len(self.jobs) < self._capacity() and self._per_service[service] < self._pool.room(service)

    # --- time --------------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Forget outcomes that were kept long enough, and end jobs that are out of time."""
        self._swept_at = now
        while self._finished and self._finished[0][0] <= now:
            _, session, job = self._finished.popleft()
            if session.leases.get(job.lease) is job:
                del session.leases[job.lease]
        self.scheduler.follow()
        for job in list(self.jobs.values()):
            if not job.is_patient and now >= job.deadline + _DEADLINE_GRACE_S:
                self._fail(job, ErrorKind.DEADLINE, f"no result within {job.ttl_s:.1f} s")
            elif job.is_patient and now >= job.moved_at + job.ttl_s + _DEADLINE_GRACE_S:
                self._fail(job, ErrorKind.STALLED, f"no progress within {job.ttl_s:.1f} s")
            elif job.is_patient and job.moved_at > job.reported_at and now >= job.reported_at + job.ttl_s / _REPORTS:
                self._report_progress(job)

    def _report_progress(self, job: Job) -> None:
        """Say that a request moves although there are no units of it for the broker yet."""
        session = self._sessions[job.broker]
        if session.is_active:
            job.reported_at = job.moved_at
            self._send(session, m.WorkerPartial(session.epoch, job.lease, job.sent_n, 0, b"", {"progress": True}))

    def hand_back(self) -> None:
        """Return everything that still runs to its broker: it goes on elsewhere."""
        for job in list(self.jobs.values()):
            self._fail(job, ErrorKind.DRAINING, f"node {self._config.node_id} is leaving")
