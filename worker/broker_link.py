"""The socket to one broker: connects, reports what its monitor sees, moves envelopes. Decides nothing.

A DEALER here never reconnects (protocol/transport.py): after a loss the link is closed and opened again, with a new
socket, when the core asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import typing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..protocol import addresses, codec, diagnose, transport
from ..protocol import messages as m
from ..protocol.errors import TABLE, ErrorKind, ProtocolError
from ..protocol.failure import of_other_port, of_version
from ..protocol.keys import PeerKeys
from ..protocol.timing import Backoff

log = logging.getLogger(__name__)

_BUDGET: Final = 64
"""Envelopes taken in one pass, so that a broker with much to say does not keep engines and other brokers waiting."""
_MAX_UNSENT: Final = 10_000
"""Envelopes that a broker has not taken. Beyond it the link is broken: what was lost is replayed when it is back."""
_FAREWELL_MS: Final = 250
_FAILED: Final = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_OVER: Final = int(zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
_CLIENT_COMMANDS: Final = frozenset(
    f"unknown command {int(kind.__struct_config__.tag)}" for kind in typing.get_args(m.ToClient)
)


class Ending(NamedTuple):
    """Why a connection is over; None: a look at the broker has to tell. `broke_off`: the handshake had begun."""

    cause: str | None
    broke_off: bool = False


class BrokerLink:
    """The connection to one broker. `wake` is called whenever there may be something to read."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        keys: PeerKeys | None,
        wake: Callable[[], None],
    ) -> None:
        self.endpoint = endpoint
        self._context = context
        self._keys = keys
        self._wake = wake
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._unsent: deque[codec.Frames] = deque()
        self._is_greeted = False
        self._names = addresses.Resolver()
        self._pauses = Backoff(None, first_s=0.005, most_s=0.05)
        self._retry: asyncio.TimerHandle | None = None
        self._may_have_messages = False
        """Whether the DEALER is to be read: most passes are about an engine, and to read in vain is not free."""
        self._may_have_events = False
        """The same for its monitor."""

    def open(self) -> None:
        """Make a socket and begin to connect."""
        loop = asyncio.get_running_loop()
        self._is_greeted = False
        self._dealer = transport.make_dealer(self._context, keys=self._keys)
        self._monitor = transport.monitor(self._dealer)
        loop.add_reader(transport.descriptor(self._monitor), self._on_events)
        loop.add_reader(transport.descriptor(self._dealer), self._on_messages)
        self._begin(loop, self._dealer)
        loop.call_soon(self._on_events)  # the descriptors are edge-triggered: look once by ourselves

    def _on_messages(self) -> None:
        self._may_have_messages = True
        self._wake()

    def _on_events(self) -> None:
        if self._monitor is None:  # closed meanwhile
            return
        self._may_have_events = True
        self._on_messages()  # what a broker said before it left still counts

    def _begin(self, loop: asyncio.AbstractEventLoop, dealer: zmq.Socket[bytes]) -> None:
        """Connect, after a look-up in a thread of its own where there is a name: that may take seconds."""
        if not addresses.is_name(self.endpoint):
            transport.connect(dealer, self.endpoint)
            return

        def connect(at: str) -> None:
            if dealer is self._dealer:  # not given up meanwhile
                transport.connect(dealer, self.endpoint, at=at)

        self._names.look_up(self.endpoint, lambda at: loop.call_soon_threadsafe(connect, at))

    def close(self, *, is_farewell: bool = False) -> None:
        """Drop the socket; on a farewell, give what is queued a moment to leave."""
        if self._dealer is None or self._monitor is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(transport.descriptor(self._dealer))
        loop.remove_reader(transport.descriptor(self._monitor))
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(_FAREWELL_MS if is_farewell else 0)
        self._dealer = self._monitor = None
        self._may_have_messages = self._may_have_events = False
        self._unsent.clear()
        if self._retry is not None:
            self._retry.cancel()

    def events(self) -> Iterator[Ending | None]:
        """Yield what the monitor saw: None for a finished handshake, else why the connection is over."""
        while self._monitor is not None and self._may_have_events:
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._may_have_events = False
                return
            seen = parse_monitor_message(frames)
            event = int(seen["event"])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._is_greeted = True
                yield None
            elif event & _FAILED:
                failure = diagnose.of_handshake(
                    event, int(seen["value"]), self.endpoint, has_keys=self._keys is not None, role="worker"
                )
                yield Ending(failure.text if failure is not None else None, broke_off=True)
            elif event & _OVER:
                yield Ending("the broker closed the connection" if self._is_greeted else None)

    def diagnose(self, *, broke_off: bool) -> str:
        """Look who answers there. Blocks for some seconds: for a thread of its own."""
        return diagnose.probe(self.endpoint, has_keys=self._keys is not None, broke_off=broke_off, role="worker").text

    def receive(self) -> Iterator[list[m.ToWorker]]:
        """Yield the messages of each envelope that has arrived, up to the budget of one pass."""
        for _ in range(_BUDGET if self._may_have_messages else 0):
            frames = None if self._dealer is None else transport.receive(self._dealer)
            if frames is None:
                self._may_have_messages = False
                return
            yield self._decode(frames)

    def _decode(self, frames: Sequence[bytes | memoryview]) -> list[m.ToWorker]:
        version = codec.read_version_answer(frames)
        if version is not None:
            return [m.Dismiss(426, of_version(*version, m.VERSION, self.endpoint, "worker").text)]
        try:
            unpacked = codec.TO_WORKER.unpack(frames)
        except ProtocolError as error:
            log.warning("broker %s sent what is not ZRT/1: %s", self.endpoint, error)
            return []
        if any(bad.why in _CLIENT_COMMANDS for bad in unpacked.bad):
            return [m.Dismiss(403, of_other_port(self.endpoint, "worker").text)]
        for bad in unpacked.bad:
            level = logging.DEBUG if bad.unknown_command else logging.WARNING  # a newer broker may say more
            log.log(level, "broker %s sent a bad message: %s", self.endpoint, bad.why)
        return unpacked.messages

    def look_again(self) -> None:
        """Read in the next pass, whatever the descriptors say."""
        self._may_have_messages = self._may_have_events = self._monitor is not None

    def has_input(self) -> bool:
        """Whether something is left to read."""
        return self._may_have_messages or self._may_have_events

    def send(self, messages: Sequence[m.FromWorker]) -> bool:
        """Queue messages, all in one envelope if they fit; False when the broker has not taken any for too long."""
        try:
            envelopes = codec.pack(messages)
        except ProtocolError:
            envelopes = codec.pack(_what_can_be_sent(messages))
        self._unsent.extend(envelopes)
        self._flush()
        return len(self._unsent) <= _MAX_UNSENT

    def _flush(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._dealer is None:
            return
        try:
            while self._unsent:
                transport.send(self._dealer, self._unsent[0])
                self._unsent.popleft()
        except zmq.Again:
            self._retry = asyncio.get_running_loop().call_later(self._pauses.next_delay_s(), self._flush_later)
        else:
            self._pauses.reset()
        self._may_have_messages |= transport.has_input(self._dealer)  # a send may eat the wake-up for it

    def _flush_later(self) -> None:
        self._flush()
        self._wake()


def _what_can_be_sent(messages: Sequence[m.FromWorker]) -> list[m.FromWorker]:
    """Replace results that no message can carry by the failure of their lease: the others go out as they are."""
    good, bad = codec.split_packable(messages)
    for message, why in bad:
        log.error("a message to the broker cannot be sent: %s: %s", type(message).__name__, why)
        if isinstance(message, m.WorkerPartial | m.WorkerFinal | m.WorkerError):
            row, text = TABLE[ErrorKind.MODEL_RAISED], "the node has a result that no message can carry; see its log"
            lost = m.WorkerError(message.epoch, message.lease, row.code, ErrorKind.MODEL_RAISED.value, False, 0, text)
            good.append(lost)
    return good
