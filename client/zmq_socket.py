"""The ZeroMQ sockets of one session: a DEALER and its monitor. They move bytes and report; the core decides."""

from __future__ import annotations

from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..protocol import codec, diagnose, transport
from ..protocol import messages as m
from ..protocol.errors import ConfigurationError, ProtocolError
from ..protocol.failure import Failure, of_other_port, of_stranger, of_version
from ..protocol.keys import PeerKeys
from .connection import BrokerConnection, ConnectionState
from .core import ClientCore

_ENVELOPES: Final = 32
"""Read from one broker in a pass; then it is the turn of requests and of time."""
_WORKER_COMMANDS: Final = frozenset(f"unknown command {number}" for number in range(161, 167))
_FAILED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_OVER: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


class ConnectionSocket:
    """One connection to one broker."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        connection: BrokerConnection,
        keys: PeerKeys | None,
        *,
        insecure: bool,
    ) -> None:
        self.connection = connection
        self.dealer = transport.make_dealer(context, keys=keys)
        self.monitor = transport.monitor(self.dealer)
        self.is_blocked = False
        """Whether envelopes wait for room in the socket."""
        self._has_keys = keys is not None
        self._insecure = insecure
        self._unsent: list[codec.Frames] = []

    def connect(self, core: ClientCore, now: float, *, at: str | None = None) -> None:
        """Begin to connect; `at` what `addresses.Resolver` has found, for a name."""
        endpoint = self.connection.endpoint
        if self.dealer.closed:  # given up while its name was looked up
            return
        try:
            # Checked at the start already, but not for the brokers that another one named since.
            transport.check_exposure(endpoint, has_keys=self._has_keys, insecure=self._insecure)
            transport.connect(self.dealer, endpoint, at=at)
        except (ConfigurationError, ValueError) as error:  # a name from another broker may hold anything
            text = str(error) if isinstance(error, ConfigurationError) else f"{endpoint!a} is no endpoint: {error}"
            core.connection_failed(self.connection, Failure(text, is_final=True), now)

    def read(self, core: ClientCore, now: float) -> None:
        """Give the core what the broker sent."""
        for _ in range(_ENVELOPES):
            frames = transport.receive(self.dealer)
            if frames is None or self.connection.state is ConnectionState.DEAD:
                return
            try:
                unpacked = codec.TO_CLIENT.unpack(frames)
            except ProtocolError:
                core.connection_failed(self.connection, self._explain(frames), now)
                return
            if any(bad.why in _WORKER_COMMANDS for bad in unpacked.bad):
                core.connection_failed(self.connection, of_other_port(self.connection.endpoint, "client"), now)
                return
            core.received(self.connection, unpacked.messages, now)

    def _explain(self, frames: list[transport.Frame]) -> Failure:
        versions = codec.read_version_answer(frames)
        if versions is None:
            return of_stranger(self.connection.endpoint)
        return of_version(*versions, m.VERSION, self.connection.endpoint, "client")

    def read_events(self, core: ClientCore, now: float) -> None:
        """Tell the core about handshakes, failures and the end of the connection."""
        while self.connection.state is not ConnectionState.DEAD and self.monitor.poll(0):
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            kind = event["event"]
            if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                core.connection_ready(self.connection, now)
            elif kind & _FAILED:
                self.connection.broke_off = True
                failure = diagnose.of_handshake(kind, event["value"], self.connection.endpoint, has_keys=self._has_keys)
                core.connection_failed(self.connection, failure, now)
            elif kind & _OVER:
                self._over(core, now)

    def _over(self, core: ClientCore, now: float) -> None:
        """Report that the connection is gone; what the broker said before that still counts."""
        if self.connection.state is ConnectionState.OPENING:
            core.connection_failed(self.connection, None, now)
            return
        self.read(core, now)
        core.connection_failed(
            self.connection, Failure(f"{self.connection.endpoint}: the broker closed the connection"), now
        )

    def flush(self, core: ClientCore, now: float) -> None:
        """Send what the core has to say, in as few envelopes as possible (nearly always one)."""
        connection = self.connection
        if connection.outbox:
            messages = connection.outbox[:]
            connection.outbox.clear()
            self._unsent += self._packed(core, messages, now)
            connection.note_sent(now)
        sent = 0
        try:
            for frames in self._unsent:
                transport.send(self.dealer, frames)
                sent += 1
        except zmq.Again:  # full, or the handshake ended just now: POLLOUT says when to go on
            pass
        del self._unsent[:sent]
        self.is_blocked = bool(self._unsent)

    def _packed(self, core: ClientCore, messages: list[m.FromClient], now: float) -> list[codec.Frames]:
        """Pack them together; if that fails, each alone, so that one which cannot travel takes no other with it."""
        try:
            return codec.pack(messages)
        except Exception:  # noqa: BLE001 - whatever it is: this thread serves everybody, and is nobody's to end
            envelopes: list[codec.Frames] = []
        for message in messages:
            try:
                envelopes += codec.pack([message])
            except Exception as error:  # noqa: BLE001 - as above
                core.unsendable(self.connection, message, error, now)
        return envelopes

    def close(self, core: ClientCore, now: float) -> None:
        """Say goodbye if there is something to say, and close."""
        has_goodbye = bool(self.connection.outbox)
        self.flush(core, now)
        self.drop(250 if has_goodbye else 0)

    def drop(self, linger_ms: int = 0) -> None:
        """Close; what was sent has so long to leave."""
        self.dealer.disable_monitor()
        self.monitor.close(0)
        self.dealer.close(linger_ms)
