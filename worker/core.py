"""What a node decides: registration with every broker, leases, credit, results, draining. No socket, clock or thread.

Events come in as method calls with `now`; what is to be done is appended to `out`, which the agent empties after each
pass (`settle` first, so that credit that nothing else carries goes out with it).

JOINING   no engine has loaded yet, or all are gone; the brokers hear of the progress, credit stands still.
READY     at least one engine serves.
DRAINING  no new work; what runs is finished, or handed back at the deadline.
GONE      everything is said.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from ..protocol import messages as m
from ..protocol.errors import TABLE, Kind, RequestError, clip
from ..protocol.timing import Backoff
from .actions import Action, Dial, Exit, HangUp, Level, Note, Prepare, RestartEngine, Send
from .engines import ipc
from .fleet import Fleet
from .jobs import Job, JobState, Outcome
from .prepare import Bounds, Prepared, PreparedTask
from .scheduler import Scheduler
from .sessions import GREETING_S, Session, SessionState

_SWEEP_S: Final = 0.25
"""How exactly deadlines of jobs are kept; the broker keeps its own, so this is a safety net."""
_DEADLINE_GRACE_S: Final = 1.0
"""The broker's deadline comes first: its answer names the reason better."""
_REFUSED_BY_BROKER: Final = (401, 403, 426)


class NodeState(enum.Enum):
    """See the module's second paragraph."""

    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


TRANSITIONS: Final = {
    NodeState.JOINING: {NodeState.READY, NodeState.DRAINING, NodeState.GONE},
    NodeState.READY: {NodeState.JOINING, NodeState.DRAINING, NodeState.GONE},
    NodeState.DRAINING: {NodeState.GONE},
    NodeState.GONE: set[NodeState](),
}


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


class WorkerCore:
    """The decisions of one node. It owns the sessions and the jobs; the scheduler runs them on the fleet."""

    def __init__(self, config: NodeConfig, fleet: Fleet, brokers: Sequence[tuple[str, Backoff]], now: float) -> None:
        self.out: list[Action] = []
        self.state = NodeState.JOINING
        self.sessions = [Session(index, endpoint, backoff) for index, (endpoint, backoff) in enumerate(brokers)]
        self.jobs: dict[tuple[str, bytes], Job] = {}
        self.fleet = fleet
        self.scheduler = Scheduler(fleet, self, self.out)
        self._config = config
        self._started_at = now
        self._numbers = itertools.count(1)
        self._preparing: dict[int, Job] = {}
        self._finished: deque[tuple[float, Session, Job]] = deque()
        self._sweep_at = now
        self._drain_until = float("inf")

    # --- brokers -----------------------------------------------------------------------------------------------------

    def connected(self, broker: int, now: float) -> None:
        """Register: the handshake with a broker is done."""
        session = self.sessions[broker]
        if session.state is not SessionState.DIALING:
            return
        session.move(SessionState.GREETING, now + GREETING_S)
        self._send(session, self._ready(session))

    def lost(self, broker: int, cause: str, now: float) -> None:
        """Take note that the connection to a broker is gone, or never came to be."""
        session = self.sessions[broker]
        if session.state in (SessionState.DOWN, SessionState.LEFT):
            return
        if session.is_active:
            session.held_until = now + self._config.held_s
            self._note("warning", f"lost broker {session.endpoint}: {cause}")
        self.out.append(HangUp(broker))
        session.move(SessionState.DOWN, now + session.backoff.next_delay_s())

    def received(self, broker: int, messages: Sequence[m.ToWorker], now: float) -> None:
        """Take in what a broker sent, in order."""
        session = self.sessions[broker]
        session.heard(now)
        for message in messages:
            if session.is_active or isinstance(message, m.WorkerWelcome | m.Dismiss):
                self._on_message(session, message, now)

    def _on_message(self, session: Session, message: m.ToWorker, now: float) -> None:
        match message:
            case m.Dispatch():
                self._dispatch(session, message, now)
            case m.WorkerCancel(lease):
                self._cancel(session, lease)
            case m.BrokerHeartbeat():
                pass  # any message counts as life; that is all it says
            case m.WorkerWelcome():
                self._welcome(session, message, now)
            case m.Drain(deadline_ms):
                self.drain(deadline_ms / 1000, "the broker asked for it", now)
            case m.Dismiss(code, text):
                self._dismissed(session, code, text, now)
            case _:
                assert_never(message)

    def _ready(self, session: Session) -> m.Ready:
        return m.Ready(
            worker_uuid=self._config.worker_uuid,
            node_id=self._config.node_id,
            capacity=min(self._config.capacity, self.fleet.capacity() or self._config.capacity),
            services=self.fleet.offers(),
            devices=[device.info for device in self.fleet.devices.values()],
            held=session.held(),
            ext=self._config.ext,
        )

    def _welcome(self, session: Session, message: m.WorkerWelcome, now: float) -> None:
        if session.state is not SessionState.GREETING:
            return
        session.welcome(message, now)
        self._note("info", f"registered with broker {message.broker_id} at {session.endpoint}, epoch {message.epoch}")
        session.is_announced = False
        current = {one.lease: one.next_n for one in message.rebound}
        for lease, job in list(session.leases.items()):
            if lease in current:
                self._replay(session, job, current.pop(lease))
            else:
                self._drop(session, job)
        for lease in current:  # given up in the very moment in which the broker took it back
            self._refuse(session, lease, Kind.ENGINE_RESTARTED, "the lease was given up before it was rebound")
        if self.state is NodeState.DRAINING:
            self._send(session, m.Draining(session.epoch))

    def _dismissed(self, session: Session, code: int, text: str, now: float) -> None:
        level: Final = "error" if code in _REFUSED_BY_BROKER else "warning"
        self._note(level, f"broker {session.endpoint} dismissed this node: {code} {text}")
        self.lost(session.broker, f"dismissed: {text}", now)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _dispatch(self, session: Session, dispatch: m.Dispatch, now: float) -> None:
        session.received += 1
        older = self.jobs.get((dispatch.user, dispatch.rid))
        if older is not None:
            self._supersede(older, session)
        info = self.fleet.info(dispatch.service)
        if info is None or self.state is NodeState.DRAINING or not self._has_room(dispatch.service):
            kind, text = self._refusal(dispatch.service)
            self._refuse(session, dispatch.lease, kind, text)
            if kind is Kind.NO_SLOT:
                session.refused.add(dispatch.service)
            return
        job = Job(next(self._numbers), session.broker, dispatch, info.kind, now)
        job.deadline += _DEADLINE_GRACE_S
        self.jobs[job.key] = session.leases[job.lease] = self._preparing[job.number] = job
        bounds = Bounds(
            service=job.service,
            task=info.task,
            context=self.fleet.context(job.service),
            default_max_tokens=self._config.default_max_tokens,
        )
        self.out.append(Prepare(job.number, dispatch, bounds, info.kind))

    def _refusal(self, service: str) -> tuple[Kind, str]:
        if self.state is NodeState.DRAINING:
            return Kind.DRAINING, f"node {self._config.node_id} is draining"
        if self.fleet.info(service) is None and not self.fleet.knows(service):
            return Kind.NOT_FOUND, f"node {self._config.node_id} does not serve {service!r}"
        return Kind.NO_SLOT, f"node {self._config.node_id} has no free slot for {service!r}"

    def _has_room(self, service: str) -> bool:
        if len(self.jobs) >= self._capacity():
            return False
        return sum(job.service == service for job in self.jobs.values()) < self.fleet.room(service)

    def _supersede(self, job: Job, session: Session) -> None:
        """Let a newer dispatch of the same request replace a job. Its own broker knows; another one is told."""
        old = self.sessions[job.broker]
        self._drop(old, job)
        if old is not session and old.is_active:
            self._refuse(old, job.lease, Kind.CANCELLED, "the request came back through another broker")

    def _cancel(self, session: Session, lease: int) -> None:
        job = session.leases.get(lease)
        if job is not None:
            self._drop(session, job)

    def prepared(self, number: int, result: Prepared | PreparedTask | RequestError, now: float) -> None:
        """Take the result of a `Prepare`; its job may be gone by now."""
        job = self._preparing.pop(number, None)
        if job is None:
            return
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

    def _finish_at_once(self, job: Job) -> None:
        """Nothing is left to generate: the node before was lost between its last unit and FINAL."""
        info, prepared = self.fleet.info(job.service), job.prepared
        assert prepared is not None
        assert prepared.finish_reason is not None
        job.finish(prepared.finish_reason, info.model if info else "", info.revision if info else "")
        job.move(JobState.DONE)
        self.completed(job)

    # --- results (the scheduler calls these) -------------------------------------------------------------------------

    def progressed(self, job: Job, since: int) -> None:
        """Send the new units, if anybody wants them before the end."""
        session = self.sessions[job.broker]
        if job.is_stream:
            job.deadline = float("inf")  # set anew by the next sweep: cheaper than the clock on every token
        if session.is_active and job.has_partials:
            self._send_partial(session, job, since)

    def completed(self, job: Job) -> None:
        """Send the result."""
        self.jobs.pop(job.key, None)
        self._keep(job)

    def failed(self, job: Job, kind: Kind, text: str) -> None:
        """Send what went wrong."""
        self.scheduler.abort(job)
        self.jobs.pop(job.key, None)
        self._preparing.pop(job.number, None)
        row = TABLE[kind]
        ext: m.Ext = {"crashes": job.crashes} if job.crashes else {}
        error = m.WorkerError(0, job.lease, row.code, kind.value, row.redispatch, 0, clip(text), ext)
        job.outcome = Outcome(job.total_n, error=error)
        self._note("info" if row.code < 500 else "warning", f"{row.code} {text}", job.request_id)
        self._keep(job)

    def _keep(self, job: Job) -> None:
        """Send the outcome, and keep it for a moment: if the connection breaks now, the lease can still be claimed."""
        session = self.sessions[job.broker]
        if session.is_active:
            self._send_outcome(session, job)
        self._finished.append((self._sweep_at + self._config.held_s, session, job))

    def _replay(self, session: Session, job: Job, next_n: int) -> None:
        if next_n > job.total_n:
            self._drop(session, job)
            self._refuse(session, job.lease, Kind.ENGINE_RESTARTED, f"unit {next_n} is beyond the {job.total_n} made")
            return
        if job.has_partials:
            self._send_partial(session, job, next_n)
        if job.outcome is not None:
            self._send_outcome(session, job)

    def _send_partial(self, session: Session, job: Job, since: int) -> None:
        body = job.chunk_since(since)
        if body is not None:
            self._send(session, m.WorkerPartial(session.epoch, job.lease, since, job.total_n - since, body))

    def _send_outcome(self, session: Session, job: Job) -> None:
        outcome = job.outcome
        assert outcome is not None
        limit = self._grant(session)
        if outcome.error is not None:
            self._send(session, _with_epoch(outcome.error, session.epoch, limit))
        else:
            final = m.WorkerFinal(session.epoch, job.lease, outcome.total_n, limit, outcome.meta, outcome.body)
            self._send(session, final)

    def _refuse(self, session: Session, lease: int, kind: Kind, text: str) -> None:
        row = TABLE[kind]
        limit = self._grant(session)
        self._send(
            session, m.WorkerError(session.epoch, lease, row.code, kind.value, row.redispatch, limit, clip(text))
        )

    def _drop(self, session: Session, job: Job) -> None:
        """Forget a job without a word."""
        self.scheduler.abort(job)
        if self.jobs.get(job.key) is job:
            del self.jobs[job.key]
        self._preparing.pop(job.number, None)
        session.leases.pop(job.lease, None)

    # --- credit ------------------------------------------------------------------------------------------------------

    def _capacity(self) -> int:
        return 0 if self.state is NodeState.DRAINING else min(self._config.capacity, self.fleet.capacity())

    def _grant(self, session: Session) -> int:
        session.grant(self._capacity() - len(self.jobs), self._has_room)
        return session.dispatch_limit

    def settle(self, now: float) -> None:
        """End a pass: tell news of the devices, and credit that no other message carried."""
        self._follow_fleet()
        is_news = any(device.has_news() for device in self.fleet.devices.values())
        for session in self.sessions:
            if not session.is_active:
                continue
            if is_news or not session.is_announced:
                self._beat(session, now)
            elif session.grant(self._capacity() - len(self.jobs), self._has_room):
                self._send(session, m.Credit(session.epoch, session.dispatch_limit))
        if is_news:
            for device in self.fleet.devices.values():
                device.told = (device.phase, device.percent)
        if self.state is NodeState.DRAINING and not self.jobs:
            self._leave(0, "drained")

    def _follow_fleet(self) -> None:
        has_engine = any(device.is_ready for device in self.fleet.devices.values())
        if has_engine and self.state is NodeState.JOINING:
            self._move(NodeState.READY)
        elif not has_engine and self.state is NodeState.READY:
            self._move(NodeState.JOINING)

    # --- engines -----------------------------------------------------------------------------------------------------

    def loading(self, device: str, phase: m.Phase, percent: float, elapsed_s: float) -> None:
        """Note progress that does not come from the engine process itself (download, conversion)."""
        one = self.fleet.devices[device]
        one.phase, one.percent, one.elapsed_s = phase, percent, elapsed_s

    def engine_said(self, device: str, messages: Sequence[ipc.FromEngine], now: float) -> None:
        """Take in what an engine process sent."""
        one = self.fleet.devices[device]
        was_ready = one.is_ready
        for message in messages:
            self.scheduler.heard(one, message, now)
        if one.is_ready != was_ready:
            self._announce()

    def engine_exited(self, device: str, reason: str, *, is_restarted: bool, now: float) -> None:
        """Take note that an engine process is gone; its supervisor starts another one, or gives the device up."""
        one = self.fleet.devices[device]
        one.restarts += is_restarted
        self._note("error", f"{device}: the engine process ended: {reason}")
        self.scheduler.exited(one, reason, "restarting" if is_restarted else "failed", now)
        self._announce()
        if all(each.phase == "failed" for each in self.fleet.devices.values()):
            self.settle(now)
            self._leave(1, f"no device can serve: {reason}")

    def _announce(self) -> None:
        for session in self.sessions:
            session.is_announced = False

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due. Feed what has arrived first: a process that was stopped finds signs of life waiting."""
        if self.state is NodeState.GONE:
            return
        for session in self.sessions:
            self._tick_session(session, now)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            self._sweep(now)
        if now >= self._drain_until and self.state is NodeState.DRAINING:
            for job in list(self.jobs.values()):
                self.failed(job, Kind.DRAINING, f"node {self._config.node_id} is leaving; go on elsewhere")

    def next_deadline(self) -> float:
        """When `tick` should be called at the latest."""
        if self.state is NodeState.GONE:
            return float("inf")
        return min(self._sweep_at, self._drain_until, *(session.next_deadline() for session in self.sessions))

    def _tick_session(self, session: Session, now: float) -> None:
        if session.state is SessionState.DOWN and now >= session.deadline:
            session.move(SessionState.DIALING, now + GREETING_S)
            self.out.append(Dial(session.broker))
        elif session.state is not SessionState.DOWN and now >= session.deadline:
            self.lost(session.broker, _SILENCE[session.state], now)
        elif session.is_active and now >= session.heartbeat_at:
            self._beat(session, now)
        if not session.is_active and session.leases and now >= session.held_until:
            for job in list(session.leases.values()):
                self._drop(session, job)

    def _beat(self, session: Session, now: float) -> None:
        """Send a heartbeat; the next one follows half an interval later, whatever else is sent meanwhile."""
        session.heartbeat_at = now + session.heartbeat_s * self._config.jitter()
        session.heartbeat_count += 1
        foremost = self.fleet.foremost()
        beat = m.Heartbeat(
            epoch=session.epoch,
            count=session.heartbeat_count,
            loop_age_ms=int(1000 * self.fleet.loop_age_s(now)),
            dispatch_limit=self._grant(session),
            phase="draining" if self.state is NodeState.DRAINING else foremost.phase,
            percent=min(100, int(foremost.percent)),
            elapsed_ms=int(1000 * (now - self._started_at)),
            devices=[device.report(now) for device in self.fleet.devices.values()],
            services=None if session.is_announced else self.fleet.offers(),
        )
        session.is_announced = True
        self._send(session, beat)

    def _sweep(self, now: float) -> None:
        """Look at what needs no exact time: outcomes kept long enough, jobs out of time, engines that stand still."""
        while self._finished and self._finished[0][0] <= now:
            _, session, job = self._finished.popleft()
            if session.leases.get(job.lease) is job:
                del session.leases[job.lease]
        for job in list(self.jobs.values()):
            if job.deadline == float("inf"):
                job.deadline = now + job.ttl_s + _DEADLINE_GRACE_S
            elif now >= job.deadline:
                kind = Kind.STALLED if job.is_stream else Kind.DEADLINE
                self.failed(job, kind, f"no {'progress' if job.is_stream else 'result'} within {job.ttl_s:.1f} s")
        for device in self.fleet.devices.values():
            if device.loop_age_s(now) > self._config.stall_s:
                reason = f"its loop stands still for {device.loop_age_s(now):.1f} s"
                self.out.append(RestartEngine(device.info.id, reason))
                device.last_step_at = now  # once is enough; the exit is reported like any other

    # --- the end -----------------------------------------------------------------------------------------------------

    def drain(self, deadline_s: float, reason: str, now: float) -> None:
        """Take no new work; leave when everything is finished, at the latest after `deadline_s`."""
        self._drain_until = min(self._drain_until, now + deadline_s)
        if self.state in (NodeState.DRAINING, NodeState.GONE):
            return
        self._move(NodeState.DRAINING)
        self._note("info", f"draining, {len(self.jobs)} requests to finish within {deadline_s:.0f} s: {reason}")
        for session in self.sessions:
            if session.is_active:
                self._send(session, m.Draining(session.epoch, clip(reason)))

    def _leave(self, code: int, reason: str) -> None:
        if self.state is NodeState.GONE:
            return
        for session in self.sessions:
            if session.is_active:
                self._send(session, m.Leave(session.epoch, clip(reason)))
            session.move(SessionState.LEFT, float("inf"))
        self._move(NodeState.GONE)
        self._drain_until = float("inf")
        self.out.append(Exit(code, reason))

    def _move(self, to: NodeState) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} -> {to}"
        self.state = to

    def _send(self, session: Session, message: m.FromWorker) -> None:
        self.out.append(Send(session.broker, message))

    def _note(self, level: Level, text: str, request_id: str = "") -> None:
        self.out.append(Note(level, text, request_id))


_SILENCE: Final = {
    SessionState.DIALING: "no handshake in time",
    SessionState.GREETING: "no WELCOME in time",
    SessionState.ACTIVE: "silent for too long",
}


def _with_epoch(error: m.WorkerError, epoch: int, limit: int) -> m.WorkerError:
    """Errors are built before it is known over which epoch they travel."""
    return m.WorkerError(epoch, error.lease, error.code, error.reason, error.retryable, limit, error.text, error.ext)
