"""A broker process: the real core behind two ROUTERs that are played here."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from support.broker_invariants import check
from zmqrt.broker.core import Bounds, Broker, SendFailure, Side
from zmqrt.protocol import messages as m

from .process import Process
from .wire import Closed, Envelope, Greeting, Item, Wire

if TYPE_CHECKING:
    from .world import World

Peer = tuple[Side, bytes]


class BrokerProcess(Process):
    """One broker. What it says to somebody of whom it was told that he is gone is a fault."""

    def __init__(self, world: World, host: str, bounds: Bounds) -> None:
        super().__init__(world, host)
        first = world.rng.getrandbits(40)
        self.core = Broker(
            world.timing,
            bounds,
            itertools.count(first).__next__,
            broker_id=host,
            broker_epoch=world.next_number(),
            now=self.agenda.now,
        )
        self.state = self.core.state
        self._wires: dict[Peer, Wire] = {}
        self._broken: list[Peer] = []
        self._told_gone: dict[Peer, int] = {}
        """Peers of whom the core knows that they are gone, and how much it had said to them before."""
        self._stalled: set[bytes] = set()

    def take(self, wire: Wire, item: Item) -> None:
        """Give the core an envelope; note who comes and goes."""
        peer = (wire.side, wire.peer)
        match item:
            case Greeting():
                self._wires[peer] = wire
                wire.greet(self)
            case Closed():
                self._wires.pop(peer, None)
                self._broken.append(peer)
            case Envelope(messages):
                if not self.core.is_muted(wire.side, wire.peer, self.agenda.now):
                    self.core.handle(wire.side, wire.peer, messages, self.agenda.now)

    def tick(self) -> None:
        """Let the core act."""
        self.core.tick(self.agenda.now)

    def due(self) -> float:
        """Ask the core."""
        return self.core.next_deadline()

    def drain(self) -> None:
        """SIGTERM."""
        self.agenda.note(self.name, "drains")
        self.core.drain(self.agenda.now)

    def finish_pass(self) -> None:
        """Flush; then ask whoever may be gone, as the shell does: a send tells."""
        self._flush()
        broken, self._broken = self._broken, []
        for side, peer in broken:
            self.core.probe(side, peer)
        self._flush()
        check(self.core.state)
        counters = self.state.counters
        assert not counters.stream_gaps, "links keep the order and leases are fenced: units cannot be missing or double"
        assert not counters.strikes, "everybody here behaves well"
        self._count_stalls()
        if self.core.is_draining and self.core.is_drained:
            self.core.close()
            self._flush()
            self.is_up = False
            self.agenda.note(self.name, "left")
            for wire in self.world.wires_of(self):
                wire.close(self)

    def _flush(self) -> None:
        while self.core.out:
            boxes: dict[Peer, list[m.Message]] = {}
            for side, name, message in self.core.out:
                boxes.setdefault((side, name), []).append(message)
            self.core.out.clear()
            for peer, messages in boxes.items():
                self._send(peer, messages)

    def _send(self, peer: Peer, messages: list[m.Message]) -> None:
        wire = self._wires.get(peer)
        if wire is not None:
            wire.send(self, messages)
            return
        if peer not in self._told_gone:
            self._told_gone[peer] = len(messages) + sum(one[:2] == peer for one in self.core.out)
        self._told_gone[peer] -= len(messages)
        assert self._told_gone[peer] >= 0, f"said to a peer that is gone: {peer} {messages}"
        self.core.send_failed(*peer, messages, SendFailure.UNREACHABLE, self.agenda.now)

    def _count_stalls(self) -> None:
        stalled = {session.peer for session in self.state.sessions.values() if session.shut_at is not None}
        self.world.totals["credit stalls"] += len(stalled - self._stalled)
        self._stalled = stalled

    # --- at the end --------------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether nothing is under way here."""
        return not any(user.requests for user in self.state.users.values()) and not self.state.memory.held_bytes

    def check_empty(self) -> None:
        """Check that the tables hold nothing of any request."""
        state = self.state
        assert not any(user.requests for user in state.users.values())
        assert not len(state.request_timers)
        assert not state.memory.held_bytes
        assert not state.dirty
        for service in state.services.values():
            assert not service.queue.count
            assert not service.running
        for node in state.nodes_by_uuid.values():
            assert not node.running
        for session in state.sessions.values():
            assert not session.subscribers
            assert not session.lagging
