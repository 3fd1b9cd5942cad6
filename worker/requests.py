"""The requests of a node: taken in under a lease, refused or run, and what is said about them to their broker. Pure.

A job belongs to the broker that dispatched it and to no other. While that broker is away nothing is sent; the log of
the job keeps everything, and `replay` sends it from wherever the broker stands when it is back.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.errors import TABLE, ErrorKind, RequestError, clip
from .actions import Action, Note, Prepare, Send
from .broker_sessions import BrokerSession
from .device_pool import DevicePool
from .device_scheduler import DeviceScheduler
from .jobs import Job, JobOutcome, JobState
from .preprocess import PreparedGeneration, PreparedTask, ServiceLimits

_DEADLINE_GRACE_S: Final = 1.0
"""The broker's deadline comes first: its answer names the reason better."""
_TOLD_TIMES: Final = 4
"""How often within its time a request's broker is told of progress that no units tell of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node is told at its start."""

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
    """Factor of each heartbeat interval, so that a fleet's beats spread."""


class RequestTable:
    """All requests of the node. `is_closed` once it drains."""

    def __init__(
        self, config: NodeConfig, pool: DevicePool, sessions: Sequence[BrokerSession], out: list[Action]
    ) -> None:
        self.jobs: dict[tuple[int, str, bytes], Job] = {}
        self.scheduler = DeviceScheduler(pool, self, out)
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

    # --- in ----------------------------------------------------------------------------------------------------------

    def dispatch(self, session: BrokerSession, dispatch: m.Dispatch, now: float) -> None:
        """Take a request in, or refuse it."""
        session.received += 1
        self._supersede(session, dispatch)
        info = self._pool.info(dispatch.service)
        if info is None or self.is_closed or not self._has_room(dispatch.service):
            self._refuse_dispatch(session, dispatch)
            return
        job = Job(next(self._numbers), session.broker, dispatch, info.kind, now)
        self.jobs[job.key] = session.leases[job.lease] = self._preparing[job.number] = job
        self._per_service[job.service] += 1
        limits = ServiceLimits(
            service=job.service,
            task=info.task,
            context=self._pool.context(job.service),
            default_max_tokens=self._config.default_max_tokens,
            vocabulary=info.capacity.vocabulary,
        )
        self._out.append(Prepare(job.number, dispatch, limits, info.kind))

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
            self.scheduler.abort(job, now)
            self.drop(session, job)

    def prepared(self, number: int, result: PreparedGeneration | PreparedTask | RequestError, now: float) -> None:
        """Take the result of a `Prepare`; its job may be gone by now."""
        job = self._preparing.pop(number, None)
        for other in self._preparing.values():
            other.moved_at = now
        if job is None:
            return
        job.moved_at = now
        if isinstance(result, RequestError):
            self.failed(job, result.kind, result.text)
            return
        if isinstance(result, PreparedTask):
            job.plain = result
        else:
            job.set_prepared(result)
            if result.finish_reason is not None:
                self._finish_at_once(job)
                return
        self.scheduler.submit(job, now)

    def is_preparing(self, number: int) -> bool:
        """Whether the result of a `Prepare` is still wanted."""
        return number in self._preparing

    def _finish_at_once(self, job: Job) -> None:
        """Nothing is left to generate: the node before was lost between its last unit and FINAL."""
        info, prepared = self._pool.info(job.service), job.prepared
        assert prepared is not None
        assert prepared.finish_reason is not None
        job.finish(prepared.finish_reason, info.model if info else "", info.revision if info else "")
        job.move(JobState.DONE)
        self.completed(job)

    # --- out (the scheduler calls the first three) -------------------------------------------------------------------

    def progressed(self, job: Job, since: int) -> None:
        """Send the new units, if anybody wants them before the end."""
        session = self._sessions[job.broker]
        if session.is_active and job.has_partials:
            self._send_partial(session, job, since)

    def completed(self, job: Job) -> None:
        """Send the result."""
        self._remove(job)
        self._keep(job)

    def failed(self, job: Job, kind: ErrorKind, text: str) -> None:
        """Send what went wrong."""
        self.scheduler.abort(job)
        self._remove(job)
        row = TABLE[kind]
        ext: m.Ext = {"crashes": job.crashes} if kind is ErrorKind.ENGINE_RESTARTED else {}
        error = m.WorkerError(0, job.lease, row.code, kind.value, row.redispatch, 0, clip(text), ext)
        job.outcome = JobOutcome(job.total_n, error=error)
        self._out.append(
            Note(
                "info" if row.code < 500 else "warning",
                f"{row.code} {text}",
                job.request_id,
                job.trace_id,
                job.rid.hex(),
            )
        )
        self._keep(job)

    def replay(self, session: BrokerSession, job: Job, next_n: int) -> None:
        """Go on under a lease that was rebound: send again what the broker has not got."""
        if next_n > job.total_n:
            self.drop(session, job)
            text = f"unit {next_n} is beyond the {job.total_n} made here"
            self.refuse(session, job.lease, ErrorKind.ENGINE_RESTARTED, text)
            return
        if job.has_partials:
            self._send_partial(session, job, next_n)
        if job.outcome is not None:
            self._send_outcome(session, job)

    def refuse(self, session: BrokerSession, lease: int, kind: ErrorKind, text: str) -> None:
        """End a lease that has no job."""
        row, limit = TABLE[kind], self.grant(session)
        ext: m.Ext = {"crashes": 0} if kind is ErrorKind.ENGINE_RESTARTED else {}  # no engine died of it
        error = m.WorkerError(session.epoch, lease, row.code, kind.value, row.redispatch, limit, clip(text), ext)
        self._send(session, error)

    def drop(self, session: BrokerSession, job: Job) -> None:
        """Forget a job without a word."""
        self.scheduler.abort(job)
        self._remove(job)
        session.leases.pop(job.lease, None)

    def _remove(self, job: Job) -> None:
        self._preparing.pop(job.number, None)
        if self.jobs.get(job.key) is job:
            del self.jobs[job.key]
            self._per_service[job.service] -= 1

    def _keep(self, job: Job) -> None:
        """Send the outcome, and keep it for a moment: if the connection breaks now, the lease can still be claimed."""
        session = self._sessions[job.broker]
        if session.is_active:
            self._send_outcome(session, job)
        self._finished.append((self._swept_at + self._config.held_s, session, job))

    def _send_partial(self, session: BrokerSession, job: Job, since: int) -> None:
        body = job.chunk_since(since)
        if body is not None:
            job.told_at = job.moved_at
            ext: m.Ext = {} if job.is_told else job.account()
            self._send(session, m.WorkerPartial(session.epoch, job.lease, since, job.total_n - since, body, ext))

    def _send_outcome(self, session: BrokerSession, job: Job) -> None:
        outcome, limit = job.outcome, self.grant(session)
        assert outcome is not None
        if outcome.error is not None:
            error = msgspec.structs.replace(outcome.error, epoch=session.epoch, dispatch_limit=limit)
            self._send(session, error)
        else:
            ext: m.Ext = {} if job.is_told else job.account()
            final = m.WorkerFinal(session.epoch, job.lease, outcome.total_n, limit, outcome.meta, outcome.body, ext)
            self._send(session, final)

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
        """Forget outcomes that were kept long enough, and give up jobs that are out of time."""
        self._swept_at = now
        while self._finished and self._finished[0][0] <= now:
            _, session, job = self._finished.popleft()
            if session.leases.get(job.lease) is job:
                del session.leases[job.lease]
        self.scheduler.follow()
        for job in list(self.jobs.values()):
            if not job.is_patient and now >= job.deadline + _DEADLINE_GRACE_S:
                self.failed(job, ErrorKind.DEADLINE, f"no result within {job.ttl_s:.1f} s")
            elif job.is_patient and now >= job.moved_at + job.ttl_s + _DEADLINE_GRACE_S:
                self.failed(job, ErrorKind.STALLED, f"no progress within {job.ttl_s:.1f} s")
            elif job.is_patient and job.moved_at > job.told_at and now >= job.told_at + job.ttl_s / _TOLD_TIMES:
                self._tell_progress(job)

    def _tell_progress(self, job: Job) -> None:
        """Say that a request moves although there are no units of it for the broker yet."""
        session = self._sessions[job.broker]
        if session.is_active:
            job.told_at = job.moved_at
            sent = max(job.first_unit, job.total_n if job.has_partials else 0)
            self._send(session, m.WorkerPartial(session.epoch, job.lease, sent, 0, b"", {"progress": True}))

    def hand_back(self) -> None:
        """Return everything that still runs to its broker: it goes on elsewhere."""
        for job in list(self.jobs.values()):
            self.failed(job, ErrorKind.DRAINING, f"node {self._config.node_id} is leaving")
