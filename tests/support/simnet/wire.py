"""Connections: first in, first out, each way with a delay of its own; cut, half-open, or blocked by a partition.

What TCP and libzmq do to us and no more: nothing is reordered, doubled or lost in the middle. A connection that breaks
loses the end of what was under way, and the two ends hear of it at different times, perhaps long after one another.
A partition only holds things up; they arrive after it (old by then), unless ZMTP heartbeats cut the connection first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zmqrt.broker.core import Side
from zmqrt.protocol import codec
from zmqrt.protocol import messages as m

if TYPE_CHECKING:
    from .process import Process
    from .world import World


@dataclass(frozen=True, slots=True)
class Greeting:
    """The ZMTP handshake: from whoever connects, and back from whoever listens."""


@dataclass(frozen=True, slots=True)
class Closed:
    """What an end sees when the connection is gone."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Messages that travel together."""

    messages: Sequence[m.Message]


Item = Greeting | Closed | Envelope
_IDLE_TALK: Final = (m.Heartbeat, m.BrokerHeartbeat, m.Ping, m.Pong)


def is_idle_talk(item: Item) -> bool:
    """Whether this says nothing but "I am alive": a trace would hold little else."""
    return isinstance(item, Envelope) and all(isinstance(one, _IDLE_TALK) for one in item.messages)


CODECS: Final[dict[tuple[Side, bool], codec.Codec[Any]]] = {
    (Side.CLIENTS, True): codec.FROM_CLIENT,
    (Side.CLIENTS, False): codec.TO_CLIENT,
    (Side.WORKERS, True): codec.FROM_WORKER,
    (Side.WORKERS, False): codec.TO_WORKER,
}


class _Channel:
    """One direction of a connection."""

    def __init__(self, wire: Wire, receiver: Process) -> None:
        self.queue: deque[Item] = deque()
        self._wire = wire
        self._receiver = receiver
        self._ready_at = 0.0
        self._held = 0

    def put(self, item: Item) -> None:
        """Send something behind what is under way."""
        agenda = self._wire.world.agenda
        self._ready_at = max(self._ready_at, agenda.now + self._wire.world.delay_s())
        self.queue.append(item)
        agenda.at(self._ready_at, self._deliver)

    def release(self) -> None:
        """Go on after a partition."""
        held, self._held = self._held, 0
        for _ in range(held):
            self._wire.world.agenda.after(self._wire.world.delay_s(), self._deliver)

    def _deliver(self) -> None:
        if not self.queue:
            return  # lost with the connection
        if self._wire.is_blocked:
            self._held += 1
        else:
            self._receiver.arrive(self._wire, self.queue.popleft())


class Wire:
    """One connection, from the process that dialed to the one that listens. A reconnect is another wire."""

    def __init__(self, world: World, dialer: Process, listener: Process, side: Side) -> None:
        self.world = world
        self.side = side
        self.peer = f"{dialer.name}#{world.next_number()}".encode()
        """How the listener's ROUTER calls the dialer."""
        self.is_cut = False
        self.dialer = dialer
        self.listener = listener
        self._channels: dict[Process, _Channel] = {end: _Channel(self, end) for end in (dialer, listener)}

    def other(self, end: Process) -> Process:
        """Return who is at the other end."""
        return self.listener if end is self.dialer else self.dialer

    @property
    def is_blocked(self) -> bool:
        """Whether a partition lies between the ends."""
        return frozenset((self.dialer.host, self.listener.host)) in self.world.partitions

    # --- what the ends do --------------------------------------------------------------------------------------------

    def greet(self, sender: Process) -> None:
        """Connect, or answer that."""
        self._put(sender, Greeting())

    def send(self, sender: Process, messages: Sequence[m.Message]) -> None:
        """Send messages in one envelope (or in as many as the codec needs). Into a cut wire they are sent in vain."""
        if self.world.uses_codec:
            unpack = CODECS[self.side, sender is self.dialer].unpack
            for frames in codec.pack(messages):
                unpacked = unpack(frames)
                assert not unpacked.bad, unpacked.bad
                self._put(sender, Envelope(unpacked.messages))
        else:
            self._put(sender, Envelope(messages))

    def close(self, sender: Process) -> None:
        """Hang up: what was sent before still arrives, what comes back is read by nobody."""
        if not self.is_cut:
            self._put(sender, Closed())
            self.is_cut = True
            self._channels[sender].queue.clear()

    def _put(self, sender: Process, item: Item) -> None:
        if not self.is_cut:
            self._channels[self.other(sender)].put(item)

    # --- what happens to it ------------------------------------------------------------------------------------------

    def cut(self, *, half_open: bool = False, dead: Process | None = None) -> None:
        """Break: an unknown part of what is under way is lost. Half-open: one end hears of it only much later."""
        if self.is_cut:
            return
        self.is_cut = True
        rng = self.world.rng
        unaware = rng.choice((self.dialer, self.listener)) if half_open else None
        for end, channel in self._channels.items():
            for _ in range(rng.randint(0, len(channel.queue))):
                channel.queue.pop()
            if end is unaware:
                self.world.agenda.after(self.world.zmtp_s(self.side), partial(channel.put, Closed()))
            elif end is not dead:
                channel.put(Closed())

    def time_out(self) -> None:
        """Break because ZMTP heartbeats went unanswered: each end sees that by itself, whatever lies between."""
        if self.is_cut:
            return
        self.is_cut = True
        for end, channel in self._channels.items():
            channel.queue.clear()
            end.arrive(self, Closed())

    def release(self) -> None:
        """Go on after a partition."""
        for channel in self._channels.values():
            channel.release()
