"""A machine that joins by a line that is good once: it makes a key of its own, which the broker lists in its place.

HELLO or READY carries the public key in `ext.enrol`, over a session that the line's key has opened; DISCONNECT or ERROR
with the code 205 answers that it is listed, and the machine connects anew under it. Its secret key never leaves it.

Each step leaves a state that the next start goes on from: the pair is on disk before the broker hears of it, and the
broker lists it and ends the line in one replacement of a file. So a machine that was cut off finds out by trying: the
line is still good, or the pair is listed already.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from . import codec, transport
from . import messages as m
from .authorized_keys import Group
from .errors import ConfigurationError, ConnectError, ProtocolError, clip
from .file_edits import replace_text
from .join_line import JoinLine
from .keys import PeerKeys, keep_joined, load_peer, new_pair, pair_of, read_secret

EXT: Final = "enrol"
ENROLLED: Final = 205
"""Reset Content, as of HTTP: come back under the key that you have named."""
_REFUSED: Final = 403
_WAIT_MS: Final = 15_000
_IN: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_OUT: Final = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
log = logging.getLogger(__name__)


# --- what both ends say ----------------------------------------------------------------------------------------------


def question(group: Group, public: bytes) -> m.Hello | m.Ready:
    """Ask that a key be listed."""
    ext: m.Ext = {EXT: public.decode()}
    if group == "clients":
        return m.Hello(bytes(16), m.VERSION, m.VERSION, ext=ext)
    return m.Ready(bytes(16), "", 0, [], [], ext=ext)


def key_in(message: m.Message) -> str:
    """Return the public key that a message asks to be listed; "" where it asks for something else."""
    asked = message.ext.get(EXT) if isinstance(message, m.Hello | m.Ready) else None
    return asked if isinstance(asked, str) else ""


def answer(group: Group, refusal: str) -> m.Error | m.Dismiss:
    """Say that a key is listed, or why it is not."""
    code, text = (_REFUSED, clip(refusal)) if refusal else (ENROLLED, "listed: connect again under the key of your own")
    if group == "clients":
        return m.Error(None, code, "forbidden" if refusal else "enrolled", False, 0, text)
    return m.Dismiss(code, text)


# --- the machine that joins ------------------------------------------------------------------------------------------


def enrol(line: JoinLine, folder: Path) -> PeerKeys:
    """Join by a line that is good once, or go on with what an earlier start has got by it; keep the keys in a folder.

    Raises:
        ConfigurationError: the line is used up, or the folder cannot be written.
        ConnectError: no broker answered.
    """
    group: Group = "workers" if line.is_worker else "clients"
    line_keys = line.peer_keys()
    name = line_keys.own.public.hex()[:16]
    done, pending = folder / f"joined-{name}", folder / f"joining-{name}.key"
    if done.exists():
        return load_peer(folder, "worker" if line.is_worker else "client", as_admin=line.role == "admin")
    is_again = pending.exists()
    if not is_again:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(pending, new_pair().secret.decode() + "\n", mode=0o600)
    own = PeerKeys(pair_of(read_secret(pending)), line_keys.server_public)
    if not _ask(line, line_keys, group, own.own.public) and not (is_again and _is_let_in(line, own)):
        pending.unlink()
        raise ConfigurationError(f"the line for {line.name} was used, revoked or has expired; ask for a new one")
    keep_joined(folder, line.role, own)
    replace_text(done, f"{line.name}\n", mode=0o644)
    pending.unlink()
    log.info("joined as %s; the keys are in %s", line.name, folder)
    return own


def _ask(line: JoinLine, keys: PeerKeys, group: Group, public: bytes) -> bool:
    """Have a key listed; False if no broker takes the line any more."""
    for broker in line.brokers:
        with _Session(broker, keys) as session:
            if session.is_let_in():
                return session.enrol(group, public)
    return False


def _is_let_in(line: JoinLine, keys: PeerKeys) -> bool:
    for broker in line.brokers:
        with _Session(broker, keys) as session:
            if session.is_let_in():
                return True
    return False


class _Session:
    """One connection."""

    def __init__(self, endpoint: str, keys: PeerKeys) -> None:
        self._endpoint = endpoint
        self._context = transport.make_context()
        self._dealer = transport.make_dealer(self._context, keys=keys)
        self._monitor = transport.monitor(self._dealer)

    def __enter__(self) -> Self:
        transport.connect(self._dealer, self._endpoint)
        return self

    def __exit__(self, *_: object) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(0)
        self._context.term()

    def is_let_in(self) -> bool:
        """Wait for the end of the handshake. Raises ConnectError where nobody is there to refuse it."""
        while self._monitor.poll(_WAIT_MS):
            event = recv_monitor_message(self._monitor)
            if int(event["event"]) & _IN:
                return True
            if int(event["event"]) == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return False
            if int(event["event"]) & _OUT:
                break
        raise ConnectError(
            f"{self._endpoint}: no broker that could take this line; is it up, and does it keep its keys?"
        )

    def enrol(self, group: Group, public: bytes) -> bool:
        """Ask; False if the line was used up meanwhile. Raises ConnectError where no answer comes."""
        for frames in codec.pack([question(group, public)]):
            transport.send(self._dealer, frames)
        decoder = codec.TO_CLIENT if group == "clients" else codec.TO_WORKER
        while self._dealer.poll(_WAIT_MS):
            try:
                messages = decoder.unpack(transport.receive(self._dealer) or []).messages
            except ProtocolError:
                break
            for message in messages:
                if isinstance(message, m.Error | m.Dismiss):
                    return message.code == ENROLLED
        raise ConnectError(f"{self._endpoint}: the broker did not say whether it takes this line; try again")
