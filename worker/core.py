"""Decides what a node does: registration with every broker, leases, credit, results, draining. Pure.

Events come in as method calls with `now`. What is to be done is appended to `out`, which the agent empties at the end
of each pass; `settle` comes before that, and sends the credit that no other message carries.

JOINING   no engine has loaded yet, or all are gone; the brokers hear of the progress, credit stands still.
READY     at least one engine serves.
DRAINING  no new work; what runs is finished, or handed back at the deadline.
GONE      it has said goodbye, and does nothing more.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, assert_never

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, clip
from ..protocol.failure import of_silence
from ..protocol.timing import Backoff
from .actions import Action, Dial, Exit, HangUp, Level, Note, ProbeBroker, RestartEngine, Send
from .broker_sessions import GREETING_S, BrokerSession, SessionState
from .device_pool import DevicePool
from .engines import ipc
from .requests import JobTable, NodeConfig

_SWEEP_S: Final = 0.25
"""How exactly deadlines of jobs are kept; the broker keeps its own, so this is a safety net."""
_BEAT_GAP_S: Final = 0.2
"""Least time between two heartbeats, however many devices have news: a broker takes ten a second, more are a strike."""
_OTHERS_S: Final = 1.0
"""How long the word that the node serves waits for further brokers, once one of them knows it."""
_REFUSED_BY_BROKER: Final = (403, 426)
"""Dismissals that somebody has to look into; 401 only means: register anew."""


class WorkerState(enum.Enum):
    """See the module's second paragraph."""

    JOINING = "joining"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


TRANSITIONS: Final = {
    WorkerState.JOINING: {WorkerState.READY, WorkerState.DRAINING, WorkerState.GONE},
    WorkerState.READY: {WorkerState.JOINING, WorkerState.DRAINING, WorkerState.GONE},
    WorkerState.DRAINING: {WorkerState.GONE},
    WorkerState.GONE: set[WorkerState](),
}


class WorkerCore:
    """The decisions of one node. It owns the sessions and its own state; requests are the request table's."""

    def __init__(
        self, config: NodeConfig, pool: DevicePool, brokers: Sequence[tuple[str, Backoff]], now: float
    ) -> None:
        self.out: list[Action] = []
        self.state = WorkerState.JOINING
        self.sessions = [BrokerSession(index, endpoint, backoff) for index, (endpoint, backoff) in enumerate(brokers)]
        self.pool = pool
        self.requests = JobTable(config, pool, self.sessions, self.out)
        self._config = config
        self._started_at = now
        self._sweep_at = now
        self._drain_until = float("inf")
        self._known_at: float | None = None

    # --- brokers -----------------------------------------------------------------------------------------------------

    def connected(self, broker: int, now: float) -> None:
        """Register: the handshake with a broker is done."""
        session = self.sessions[broker]
        if session.state is not SessionState.DIALING:
            return
        session.move(SessionState.GREETING, now + GREETING_S)
        self._send(session, self._ready(session))

    def lost(self, broker: int, cause: str | None, now: float, *, broke_off: bool = False) -> None:
        """Note that the connection to a broker is gone, or never came to be; None: only a probe can tell why."""
        session = self.sessions[broker]
        if session.state in (SessionState.DOWN, SessionState.LEFT):
            return
        if session.is_active:
            session.held_until = now + self._config.held_s
            self._note("warning", f"lost broker {session.endpoint}: {cause or 'no connection'}; trying again")
        elif cause is None:
            self.out.append(ProbeBroker(broker, broke_off))
        else:
            self._report_trouble(session, cause)
        self.out.append(HangUp(broker))
        session.move(SessionState.DOWN, now + session.backoff.next_delay_s())

    def explained(self, broker: int, cause: str) -> None:
        """Take the result of a `ProbeBroker`."""
        session = self.sessions[broker]
        if session.state is SessionState.DOWN or session.state is SessionState.DIALING:
            self._report_trouble(session, cause)

    def _report_trouble(self, session: BrokerSession, cause: str) -> None:
        """Log why there is no session: once, and not at every try."""
        if cause != session.trouble:
            session.trouble = cause
            where = "" if session.endpoint in cause else f" {session.endpoint}"
            self._note("warning", f"no session with broker{where}: {cause}; trying again and again")

    def received(self, broker: int, messages: Sequence[m.ToWorker], now: float) -> None:
        """Handle what a broker sent, in order."""
        session = self.sessions[broker]
        session.heard(now)
        for message in messages:
            if session.is_active or isinstance(message, m.WorkerWelcome | m.Dismiss):
                self._on_message(session, message, now)

    def _on_message(self, session: BrokerSession, message: m.ToWorker, now: float) -> None:
        match message:
            case m.Dispatch():
                self.requests.dispatch(session, message, now)
            case m.WorkerCancel(lease):
                self.requests.cancel(session, lease, now)
            case m.BrokerHeartbeat(_, heard):  # any message counts as life
                session.heard_count = heard
            case m.WorkerWelcome():
                self._welcome(session, message, now)
            case m.Drain(deadline_ms):
                self.drain(deadline_ms / 1000, "the broker asked for it", now)
            case m.Dismiss(code, text):
                self._dismissed(session, code, text, now)
            case _:
                assert_never(message)

    def _ready(self, session: BrokerSession) -> m.Ready:
        return m.Ready(
            worker_uuid=self._config.worker_uuid,
            node_id=self._config.node_id,
            capacity=min(self._config.capacity, self.pool.capacity() or self._config.capacity),
            services=self.pool.offers(),
            devices=[device.info for device in self.pool.devices.values()],
            held=session.held(),
            ext=self._config.ext,
        )

    def _welcome(self, session: BrokerSession, message: m.WorkerWelcome, now: float) -> None:
        if session.state is not SessionState.GREETING:
            return
        session.welcome(message, now)
        self._note("info", f"registered with broker {message.broker_id} at {session.endpoint}, epoch {message.epoch}")
        session.is_announced = False
        current = {rebound.lease: rebound.next_n for rebound in message.rebound}
        for lease, job in list(session.leases.items()):
            if lease in current:
                self.requests.replay(session, job, current.pop(lease))
            else:
                self.requests.drop(session, job)
        for lease in current:  # given up in the very moment in which the broker took it back
            self.requests.refuse(
                session, lease, ErrorKind.ENGINE_RESTARTED, "the lease was given up before it was rebound"
            )
        if self.state is WorkerState.DRAINING:
            self._send(session, m.Draining(session.epoch))

    def _dismissed(self, session: BrokerSession, code: int, text: str, now: float) -> None:
        level: Final = "error" if code in _REFUSED_BY_BROKER else "warning"
        self._note(level, f"broker {session.endpoint} dismissed this node: {code} {text}")
        self.lost(session.broker, f"dismissed: {text}", now)

    # --- a pass ------------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """End a pass: send news of the devices, and credit that no other message carried."""
        has_engine = is_news = False
        for device in self.pool.devices.values():
            has_engine, is_news = has_engine or device.is_ready, is_news or device.has_news()
        self._follow_devices(has_engine=has_engine)
        for session in self.sessions:
            if not session.is_active:
                continue
            if is_news or not session.is_announced:
                session.heartbeat_at = min(session.heartbeat_at, session.beaten_at + _BEAT_GAP_S)
            if now >= session.heartbeat_at:
                self._beat(session, now)
            elif self.requests.raise_limit(session):
                self._send(session, m.Credit(session.epoch, session.dispatch_limit))
        if is_news:
            for device in self.pool.devices.values():
                device.was_reported()
        if self.state is WorkerState.DRAINING and not self.requests.jobs:
            self._leave(0, "drained")

    def is_served(self, now: float) -> bool:
        """Whether requests find this node: a broker knows that it is ready, and no other one is about to."""
        if self.state is not WorkerState.READY or not any(session.knows_ready for session in self.sessions):
            return False
        self._known_at = now if self._known_at is None else self._known_at
        return now >= self._known_at + _OTHERS_S or not any(session.is_coming for session in self.sessions)

    def _follow_devices(self, *, has_engine: bool) -> None:
        if has_engine and self.state is WorkerState.JOINING:
            self._move(WorkerState.READY)
        elif not has_engine and self.state is WorkerState.READY:
            self._move(WorkerState.JOINING)

    # --- engines -----------------------------------------------------------------------------------------------------

    def loading(self, device: str, phase: m.Phase, percent: float, elapsed_s: float) -> None:
        """Note progress that does not come from the engine process itself (download, conversion)."""
        self.pool.devices[device].loading(phase, percent, elapsed_s)

    def engine_sent(self, device_id: str, messages: Sequence[ipc.FromEngine], now: float) -> None:
        """Handle what an engine process sent."""
        device = self.pool.devices[device_id]
        was_ready = device.is_ready
        self.requests.engine_sent(device, messages, now)
        if device.is_ready != was_ready:
            self._announce()

    def engine_exited(self, device_id: str, reason: str, *, is_restarted: bool, now: float) -> None:
        """Note that an engine process is gone; its supervisor starts another one, or gives the device up."""
        device = self.pool.devices[device_id]
        self._note("error", f"{device_id}: the engine process ended: {reason}")
        self.requests.engine_exited(device, reason, is_restarted=is_restarted, now=now)
        self._announce()
        if all(other.phase == "failed" for other in self.pool.devices.values()):
            for session in self.sessions:
                if session.is_active:
                    self._beat(session, now)  # the last one: who watches the nodes reads what failed
            self._leave(1, f"no device can serve; {device_id}: {reason}")

    def _announce(self) -> None:
        for session in self.sessions:
            session.is_announced = False

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due. Feed what has arrived first: a process that was stopped finds signs of life waiting."""
        if self.state is WorkerState.GONE:
            return
        for session in self.sessions:
            self._tick_session(session, now)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            self._sweep(now)
        if now >= self._drain_until and self.state is WorkerState.DRAINING:
            self.requests.hand_back()

    def next_deadline(self) -> float:
        """When `tick` should be called at the latest."""
        if self.state is WorkerState.GONE:
            return float("inf")
        return min(self._sweep_at, self._drain_until, *(session.next_deadline() for session in self.sessions))

    def _tick_session(self, session: BrokerSession, now: float) -> None:
        if session.state is SessionState.DOWN and now >= session.deadline:
            session.move(SessionState.DIALING, now + GREETING_S)
            self.out.append(Dial(session.broker))
        elif session.state is not SessionState.DOWN and now >= session.deadline:
            self.lost(session.broker, _silence(session), now)
        elif session.is_active and now >= session.heartbeat_at:
            self._beat(session, now)
        if not session.is_active and session.leases and now >= session.held_until:
            for job in list(session.leases.values()):
                self.requests.drop(session, job)

    def _beat(self, session: BrokerSession, now: float) -> None:
        """Send a heartbeat, whatever else has been sent meanwhile."""
        foremost, services = self.pool.foremost(), None if session.is_announced else self.pool.offers()
        session.beat(now, self._config.jitter(), is_ready=self.state is WorkerState.READY)
        beat = m.Heartbeat(
            epoch=session.epoch,
            count=session.heartbeat_count,
            loop_age_ms=int(1000 * self.pool.loop_age_s(now)),
            dispatch_limit=self.requests.grant(session),
            phase="draining" if self.state is WorkerState.DRAINING else foremost.phase,
            percent=min(100, int(foremost.percent)),
            elapsed_ms=int(1000 * (now - self._started_at)),
            devices=[device.report(now) for device in self.pool.devices.values()],
            services=services,
        )
        self._send(session, beat)

    def _sweep(self, now: float) -> None:
        """Look at what needs no exact time: outcomes kept long enough, jobs out of time, engines that stand still."""
        self.requests.sweep(now)
        for device in self.pool.devices.values():
            if device.loop_age_s(now) > self._config.stall_s:
                reason = f"its loop stands still for {device.loop_age_s(now):.1f} s"
                self.out.append(RestartEngine(device.info.id, reason))
                device.last_step_at = now  # once is enough: the exit is reported like any other

    # --- the end -----------------------------------------------------------------------------------------------------

    def drain(self, deadline_s: float, reason: str, now: float) -> None:
        """Take no new work; leave when everything is finished, at the latest after `deadline_s`."""
        self._drain_until = min(self._drain_until, now + deadline_s)
        if self.state in (WorkerState.DRAINING, WorkerState.GONE):
            return
        self._move(WorkerState.DRAINING)
        self.requests.is_closed = True
        self._note(
            "info", f"draining, {len(self.requests.jobs)} requests to finish within {deadline_s:.0f} s: {reason}"
        )
        for session in self.sessions:
            if session.is_active:
                self._send(session, m.Draining(session.epoch, clip(reason)))

    def _leave(self, code: int, reason: str) -> None:
        if self.state is WorkerState.GONE:
            return
        for session in self.sessions:
            if session.is_active:
                self._send(session, m.Leave(session.epoch, clip(reason)))
            session.move(SessionState.LEFT, float("inf"))
        self._move(WorkerState.GONE)
        self._drain_until = float("inf")
        self.out.append(Exit(code, reason))

    def _move(self, to: WorkerState) -> None:
        assert to in TRANSITIONS[self.state], f"{self.state} -> {to}"
        self.state = to

    def _send(self, session: BrokerSession, message: m.FromWorker) -> None:
        self.out.append(Send(session.broker, message))

    def _note(self, level: Level, text: str) -> None:
        self.out.append(Note(level, text))


def _silence(session: BrokerSession) -> str | None:
    """Say what a silence means; None where only a probe can tell."""
    if session.state is SessionState.ACTIVE:
        return "silent for too long"
    return of_silence(session.endpoint, "worker").text if session.state is SessionState.GREETING else None
