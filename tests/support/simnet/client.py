"""A client process: the real core over simulated connections, with readers that check what they are told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from zmqrt.broker.core import Side
from zmqrt.client.config import ClientConfig
from zmqrt.client.connection import BrokerConnection
from zmqrt.client.core import ClientCore
from zmqrt.client.failover import CloseSocket, OpenSocket, ProbeEndpoint, SocketAction
from zmqrt.client.requests import ClientRequest
from zmqrt.protocol import messages as m
from zmqrt.protocol.failure import Failure

from .oracle import Asked, Wish
from .process import Process
from .wire import Closed, Envelope, Greeting, Item, Wire

if TYPE_CHECKING:
    from .world import World


class ClientProcess(Process):
    """One application with its client library."""

    def __init__(self, world: World, host: str) -> None:
        super().__init__(world, host)
        self._rng = random.Random(world.rng.getrandbits(64))
        endpoints = [f"tcp://{broker.host}:{number}" for number, broker in enumerate(world.brokers, 1)]
        if world.plan.spreads_clients:
            self._rng.shuffle(endpoints)
        config = ClientConfig(
            endpoints=tuple(endpoints),
            timeout_s=world.timing.request_timeout_s,
            connect_timeout_s=world.plan.patience_s,
        )
        self.core = ClientCore(config, self._rng.randbytes(16), self._rng)
        self._wires: dict[BrokerConnection, Wire] = {}
        self._connections: dict[Wire, BrokerConnection] = {}
        self.asked: list[Asked] = []
        self._in_use: str | None = None
        self.call(lambda: self.core.start(self.agenda.now))

    # --- the application ---------------------------------------------------------------------------------------------

    def ask(self, wish: Wish) -> Asked:
        """Submit a request."""
        asked = self.world.oracle.ask(wish, self._rng, self.agenda.now)

        def submit() -> None:
            self.asked.append(asked)
            self.core.submit(ClientRequest(asked.call, asked, self.agenda.now), self.agenda.now)

        self.call(submit)
        return asked

    def cancel(self, asked: Asked) -> None:
        """Give a request up."""
        asked.was_cancelled = True
        self.call(lambda: self.core.cancel(asked.call.rid, self.agenda.now))

    # --- in ----------------------------------------------------------------------------------------------------------

    def take(self, wire: Wire, item: Item) -> None:
        """Give the core what a broker sent, unless the connection was given up."""
        connection = self._connections.get(wire)
        if connection is None:
            return
        now = self.agenda.now
        match item:
            case Greeting():
                self.core.connection_ready(connection, now)
            case Closed():
                is_vague = wire.listener.is_up and connection.state.value == "opening"
                gone = None if is_vague else Failure(f"{connection.endpoint}: the connection is gone")
                self.core.connection_failed(connection, gone, now)
            case Envelope(messages):
                self.core.received(connection, cast("Sequence[m.ToClient]", messages), now)

    def tick(self) -> None:
        """Let the core act."""
        self.core.tick(self.agenda.now)

    def due(self) -> float:
        """Ask the core."""
        return self.core.next_deadline()

    # --- out ---------------------------------------------------------------------------------------------------------

    def finish_pass(self) -> None:
        """Hand out events, then act, then send: the order of the I/O loop."""
        now = self.agenda.now
        while events := self.core.take_events():
            for sink, event in events:
                if isinstance(sink, Asked):
                    self.agenda.note(self.name, f"{sink.call.rid.hex()[:4]} gets {event}")
                if not sink.put(event) and isinstance(event, m.Partial):
                    self.core.overflowed(event.rid, now)
        while actions := self.core.take_actions():
            for action in actions:
                self._act(action)
        for connection, wire in self._wires.items():
            self._flush(connection, wire)
        self._count_fail_overs()
        for asked in self.asked:
            is_live = asked.call.rid in self.core.table.live
            assert is_live == (asked.end is None), "a request that is neither under way nor ended, or both"
        self.asked = [asked for asked in self.asked if asked.end is None]

    def _act(self, action: SocketAction) -> None:
        match action:
            case OpenSocket(connection):
                wire = self.world.dial(self, int(connection.endpoint.rpartition(":")[2]) - 1, Side.CLIENTS)
                self._wires[connection], self._connections[wire] = wire, connection
                if not wire.is_cut:
                    wire.greet(self)
            case CloseSocket(connection):
                wire = self._wires.pop(connection)
                del self._connections[wire]
                self._flush(connection, wire)
                wire.close(self)
            case ProbeEndpoint(endpoint):
                failure = Failure(f"nobody listens at {endpoint}")
                self.agenda.after(
                    0.1, lambda: self.call(lambda: self.core.explained(endpoint, failure, self.agenda.now))
                )

    def _flush(self, connection: BrokerConnection, wire: Wire) -> None:
        if connection.outbox:
            wire.send(self, connection.outbox[:])
            connection.outbox.clear()
            connection.note_sent(self.agenda.now)

    def _count_fail_overs(self) -> None:
        """Count the changes of broker that had requests to bring along."""
        connection = self.core.connections.current
        if connection is not None and connection.endpoint != self._in_use:
            self.world.totals["fail-overs"] += self._in_use is not None and bool(self.asked)
            self._in_use = connection.endpoint

    # --- at the end --------------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self.core.table.live and not self.has_input()

    def check_empty(self) -> None:
        """Check that nothing of any request is left."""
        table = self.core.table
        assert not table.live
        assert not table.queue
        for connection in self.core.connections.by_id.values():
            assert not connection.outstanding
            assert not connection.unacked
