"""Many registered peers in one process: nodes that beat and take no work, or clients that lose their connections.

    python bench/crowd.py nodes|clients ENDPOINT FIRST COUNT

Each is a connection of its own, made with the project's codec and sockets, and as patient as the real ones are: the
times are those of the client library and of the agent. It writes a `Gathering` when all are in. At each line on its
standard input all close their connections, open new ones and (clients) ask for one answer; a `Gathering` tells how that
went.
"""

from __future__ import annotations

import random
import selectors
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
import zmq
from idle_nodes import news
from rounds import say
from zrt_peers import SERVICE

from zmqrt.client.connection import WELCOME_S
from zmqrt.protocol import codec, descriptors, transport
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Backoff, Timing
from zmqrt.worker.broker_sessions import GREETING_S

Role = Literal["nodes", "clients"]
BODY: Final = b"x" * 100
GIVE_UP_S: Final = 60.0
"""Who has no answer by then has none at all."""
_COME_PER_S: Final = 400.0
"""So many connect in a second at first, for each process: all at once is what a storm is."""
_TURN_S: Final = 0.01
_BEAT_S: Final = Timing().heartbeat_send_s
_EVENTS: Final = int(zmq.EVENTS)


class Gathering(msgspec.Struct, frozen=True):
    """How it went when all came, or came back."""

    elapsed_s: float
    half_s: float
    """When half of them had what they came for."""
    refused: int
    """Told that asking again is of no use."""
    missing: int
    """Without what they came for when it was given up."""
    again: int
    """Connections given up and made anew: no greeting came in time, or it was lost."""
    postponed: int
    """Told to ask later."""
    cpu_s: float
    """Of the process that plays them."""


class Member:
    """One peer of the crowd: its connection, and what it waits for."""

    def __init__(self, number: int, role: Role) -> None:
        self.uuid = b"crowd" + number.to_bytes(11, "big")
        self.is_node = role == "nodes"
        self.name = f"{role}-{number}"
        self.backoff = Backoff(random.Random(number))
        self.socket: zmq.Socket[bytes] | None = None
        self.fd = -1
        self.has_greeted = False
        self.is_up = False
        self.wants_answer = False
        self.was_refused = False
        self.patience_s = GREETING_S if self.is_node else WELCOME_S
        """How long it waits for a connection, and again for the answer to its greeting."""
        self.due_at = 0.0
        """When it connects or asks again; while it waits for a greeting, when it gives this connection up."""
        self.epoch = 0
        self.beats = 0

    @property
    def is_content(self) -> bool:
        """Whether it waits for nothing (any more)."""
        return self.was_refused or (self.is_up and not self.wants_answer)

    def greeting(self) -> m.Message:
        """Return how it introduces itself."""
        if not self.is_node:
            return m.Hello(self.uuid, 1, 1, self.name)
        device = m.DeviceInfo("cuda:0", "cuda", "Example GPU", 80 << 30)
        offers = [m.ServiceOffer(SERVICE, 0, "generate")]
        return m.Ready(self.uuid, self.name, 64, offers, [device], ext={"proof": self.name})

    def beat(self) -> m.Message:
        """Return a heartbeat with news about its device, as real ones have them."""
        self.beats += 1
        count = self.beats
        return m.Heartbeat(self.epoch, count, 0, 0, "ready", elapsed_ms=count * 2500, devices=[news("cuda:0", count)])

    def say(self, message: m.Message) -> None:
        """Send one message. Raises zmq.Again if the connection is gone."""
        assert self.socket is not None
        for frames in codec.pack([message]):
            transport.send(self.socket, frames)


class Crowd:
    """All of them, in one loop."""

    def __init__(self, role: Role, endpoint: str, first: int, count: int) -> None:
        self._context = transport.make_context()
        self._endpoint = endpoint
        self._codec: codec.Codec[Any] = codec.TO_WORKER if role == "nodes" else codec.TO_CLIENT
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._members = [Member(number, role) for number in range(first, first + count)]
        self._rids = first << 64
        self._again = self._postponed = 0
        self._lost: list[Member] = []
        self._beat_at, self._turn = time.monotonic(), 0
        for index, member in enumerate(self._members):
            member.due_at = self._beat_at + index / _COME_PER_S

    def gather(self) -> Gathering:
        """Connect those that are not, and wait until each has what it wants."""
        began_at, used_s = time.monotonic(), time.process_time()
        self._again = self._postponed = 0
        half_s = 0.0
        while True:
            now = time.monotonic()
            waiting = [member for member in self._members if not member.is_content]
            if not half_s and 2 * len(waiting) <= len(self._members):
                half_s = now - began_at
            if not waiting or now - began_at > GIVE_UP_S:
                break
            self._act(waiting, now)
            self._let_beat()
            self._read(_TURN_S)
        refused = sum(member.was_refused for member in self._members)
        return Gathering(
            elapsed_s=time.monotonic() - began_at,
            half_s=half_s,
            refused=refused,
            missing=len(waiting),
            again=self._again,
            postponed=self._postponed,
            cpu_s=time.process_time() - used_s,
        )

    def storm(self) -> Gathering:
        """Cut all connections at once; each member is to come back and to be answered once."""
        for member in self._members:
            self._cut(member)
            member.wants_answer = not member.is_node
            member.due_at = time.monotonic() + member.backoff.next_delay_s()
        return self.gather()

    def idle(self) -> bool:
        """Live on until a line comes; False at the end of them."""
        while not self._read(self._let_beat()):
            if self._lost:
                self._act([member for member in self._lost if not member.is_content], time.monotonic())
                self._lost = [member for member in self._lost if not member.is_content]
        return bool(sys.stdin.readline())

    def _let_beat(self) -> float | None:
        """Let the nodes beat whose turn it is; return how long there is to wait for what is next."""
        if not self._members[0].is_node:
            return None
        now = time.monotonic()
        self._beat_at = max(self._beat_at, now - _BEAT_S)
        while self._beat_at <= now:
            member = self._members[self._turn % len(self._members)]
            self._turn += 1
            self._beat_at += _BEAT_S / len(self._members)
            if member.is_up:
                self._beat(member)
        return self._beat_at - now

    def _act(self, waiting: list[Member], now: float) -> None:
        for member in waiting:
            if now < member.due_at:
                continue
            if member.socket is None:
                self._connect(member, now)
            elif member.is_up:
                self._ask(member)
                self._look(member)  # sending may have eaten the news that something can be read
            else:
                self._again += 1
                self._cut(member)
                member.due_at = now + member.backoff.next_delay_s()

    def _connect(self, member: Member, now: float) -> None:
        member.socket = transport.make_dealer(self._context)
        transport.connect(member.socket, self._endpoint)
        member.due_at = now + member.patience_s
        member.fd = transport.descriptor(member.socket)
        self._selector.register(member.fd, selectors.EVENT_READ, member)
        self._look(member)

    def _cut(self, member: Member) -> None:
        if member.socket is not None:
            if member.fd in self._selector.get_map():
                self._selector.unregister(member.fd)
            member.socket.close(0)
        member.socket, member.is_up, member.has_greeted = None, False, False

    def _ask(self, member: Member) -> None:
        self._rids += 1
        member.due_at = time.monotonic() + GIVE_UP_S
        self._try(member, m.Request(self._rids.to_bytes(16, "big"), SERVICE, 30_000, m.IDEMPOTENT, 0, 0, 0, BODY))

    def _read(self, timeout_s: float | None) -> bool:
        """Let those act whose connection has news; True if standard input has a line."""
        has_line = False
        for key, _ in self._selector.select(timeout_s):
            if isinstance(key.data, Member):
                self._look(key.data)
            else:
                has_line = True
        return has_line

    def _look(self, member: Member) -> None:
        """Do what the connection is ready for; a descriptor of libzmq tells only of changes, so until nothing is."""
        while member.socket is not None:
            events = int(member.socket.getsockopt(_EVENTS))
            if not member.has_greeted and events & zmq.POLLOUT:
                member.has_greeted = True
                member.due_at = time.monotonic() + member.patience_s
                self._try(member, member.greeting())
            elif not events & zmq.POLLIN or not self._hear(member):
                return

    def _hear(self, member: Member) -> bool:
        if member.socket is None:
            return False
        frames = transport.receive(member.socket)
        for message in self._codec.unpack(frames).messages if frames is not None else ():
            self._take(member, message)
        return frames is not None

    def _take(self, member: Member, message: m.Message) -> None:
        match message:
            case m.WorkerWelcome():
                member.is_up, member.epoch = True, message.epoch
                member.backoff.reset()
                self._selector.unregister(member.fd)  # from now on it listens when it beats
                self._try(member, member.beat())
            case m.Welcome():
                member.is_up = True
                member.backoff.reset()
                if member.wants_answer:
                    self._ask(member)
            case m.Final():
                member.wants_answer = False
            case m.Error() if message.retryable or message.rid is None:
                self._postponed += 1
                member.due_at = time.monotonic() + message.retry_after_ms / 1000
            case m.Dismiss():
                self._lose(member)
            case m.Error():
                member.was_refused = True
            case _:
                pass

    def _beat(self, member: Member) -> None:
        while self._hear(member):
            pass
        if member.is_up:
            self._try(member, member.beat())

    def _try(self, member: Member, message: m.Message) -> None:
        """Say something; whoever's connection is gone comes back, as real ones do."""
        try:
            member.say(message)
        except zmq.Again:
            self._lose(member)

    def _lose(self, member: Member) -> None:
        self._again += 1
        self._cut(member)
        member.due_at = time.monotonic() + member.backoff.next_delay_s()
        self._lost.append(member)


def main(role: Role, endpoint: str, first: int, count: int) -> None:
    """Gather, then storm for each line that comes."""
    descriptors.raise_limit()
    crowd = Crowd(role, endpoint, first, count)
    tell: Callable[[Gathering], None] = lambda outcome: say(msgspec.json.encode(outcome).decode())  # noqa: E731
    tell(crowd.gather())
    while crowd.idle():
        tell(crowd.storm())


if __name__ == "__main__":
    which, where, lowest, number = sys.argv[1:]
    main("nodes" if which == "nodes" else "clients", where, int(lowest), int(number))
