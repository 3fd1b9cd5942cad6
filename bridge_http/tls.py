"""TLS between a socket and what speaks HTTP over it, and the certificate as its files change.

The TLS of event loops would tell of a connection only after its handshake: until then nobody counts it, and it may
take a minute. And it cannot end one direction, which is how a refused caller gets its answer (`connection.py`). So the
bytes go through `ssl.MemoryBIO` here (docs/adr/0028): a connection is one of the limit from its first moment, and what
bounds the wait for a head bounds the handshake too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, cast

from ..protocol.errors import ConfigurationError
from ..protocol.own_files import LooseFileError, refuse_readable
from .errors import RefusedError

_LOOK_EVERY_S: Final = 1.0
"""How often the files are looked at, when somebody connects: a certificate is renewed once in weeks."""
_AT_ONCE_BYTES: Final = 64 << 10
_HANDSHAKE: Final = b"\x16"
_Stamp = tuple[tuple[int, int, int], ...]
log = logging.getLogger(__name__)


class Certificate:
    """The certificate of a bridge. Files that cannot be used any more change nothing: those from before count."""

    def __init__(self, chain: Path, key: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the files. Raises ConfigurationError."""
        self._chain = chain
        self._key = key
        self._clock = clock
        self._looked_at = clock()
        self._seen = self._stamp()
        self._context = load_context(chain, key)

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """Begin TLS with one peer, by the files as they are now."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._look()
        return self._context.wrap_bio(incoming, outgoing, server_side=True)

    def _look(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._context = load_context(self._chain, self._key)
        except ConfigurationError as error:  # also while one of the two is new and the other is not yet
            log.error("%s: the certificate from before is used on", error)  # noqa: TRY400 - its words say all
        else:
            log.info("%s is used from now on, as it was changed", self._chain)

    def _stamp(self) -> _Stamp:
        found: list[tuple[int, int, int]] = []
        for path in (self._chain, self._key or self._chain):
            try:
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)


def load_context(chain: Path, key: Path | None) -> ssl.SSLContext:
    """Read certificate and key; without KEY it stands in the same file. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # else a peer could make us compute without end
    context.set_alpn_protocols(["http/1.1"])
    try:
        for path in (chain, key or chain):
            path.open("rb").close()  # ssl's own error names no file
        refuse_readable(key or chain)
        context.load_cert_chain(chain, key, password=_no_password)
    except LooseFileError:
        raise
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        files = f"{chain} and {key}" if key is not None else str(chain)
        raise ConfigurationError(f"{files} are no certificate with its private key, as PEM: {reason}") from None
    except OSError as error:
        raise ConfigurationError(f"{error.filename or chain} cannot be read: {error.strerror}") from None
    return context


def _no_password() -> NoReturn:
    raise ConfigurationError("the private key of TLS is encrypted; a bridge starts without anybody to ask: decrypt it")


class _Http(Protocol):
    """What speaks over the stream: a protocol of asyncio that can also be told to refuse."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def refuse(self, error: RefusedError) -> None: ...


class TlsStream(asyncio.Transport):
    """What a connection writes, encrypted, and what came for it, decrypted. The socket has all the buffers."""

    def __init__(self, wire: asyncio.Transport, certificate: Certificate) -> None:
        super().__init__()
        self._wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = certificate.wrap(self._incoming, self._outgoing)
        self._is_open = False  # the handshake is done
        self._is_shut = False  # our half is closed
        self._is_left = False  # the peer's is
        self.is_plain = False
        """Whether the peer speaks no TLS, and is told so."""

    def read(self, data: bytes) -> list[bytes]:
        """Decrypt what came; an empty piece is the peer's farewell. Raises ssl.SSLError."""
        pieces: list[bytes] = []
        if self._is_shut or self._is_left:
            return pieces  # nobody reads it any more, and it would pile up
        self._incoming.write(data)
        try:
            if not self._is_open:
                self._tls.do_handshake()
                self._is_open = True
            while not pieces or pieces[-1]:
                pieces.append(self._tls.read(_AT_ONCE_BYTES))
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            pieces.append(b"")
        finally:
            self._is_left = pieces[-1:] == [b""]
            self._flush()  # its part of the handshake, or the alert that says what was wrong
        return pieces

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; before the handshake there is nobody who could read it."""
        if self.is_plain:
            self._wire.write(data)
        elif self._is_open and not self._is_shut:
            left = memoryview(data)
            try:
                while left:
                    left = left[self._tls.write(left) :]
            except ssl.SSLError as error:
                log.info("TLS broke off: %s", error.reason)
                self._wire.abort()
            self._flush()

    def can_write_eof(self) -> bool:
        """Say that one direction may end before the other."""
        return True

    def write_eof(self) -> None:
        """End our half."""
        self._shut()
        self._wire.write_eof()

    def close(self) -> None:
        """Say farewell, and close when all is sent."""
        self._shut()
        self._wire.close()

    def abort(self) -> None:
        """Close at once."""
        self._wire.abort()

    def is_closing(self) -> bool:
        """Whether it ends."""
        return self._wire.is_closing()

    def pause_reading(self) -> None:
        """Read nothing for a while."""
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._wire.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say how much may wait for a reader."""
        self._wire.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Count what waits for a reader."""
        return self._wire.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - as asyncio has it
        """Tell of the socket."""
        return self._wire.get_extra_info(name, default)

    def _shut(self) -> None:
        if self._is_open and not self._is_shut:
            with contextlib.suppress(ssl.SSLError):  # it would like to wait for the peer's farewell
                self._tls.unwrap()
            self._flush()
        self._is_shut = True

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and not self._wire.is_closing():
            self._wire.write(data)


class TlsConnection(asyncio.Protocol):
    """Stands between a socket and its connection."""

    def __init__(self, http: _Http, certificate: Certificate) -> None:
        self._http = http
        self._certificate = certificate
        self._stream: TlsStream
        self._has_begun = False
        self._has_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Have it counted, and its clock started, before a byte of TLS was read."""
        self._stream = TlsStream(cast("asyncio.Transport", transport), self._certificate)
        self._http.connection_made(self._stream)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if not self._has_begun:
            self._has_begun = True
            if data[:1] != _HANDSHAKE:
                self._stream.is_plain = True
                text = "this port speaks TLS: use https://, not http://"
                self._http.refuse(RefusedError(400, "tls_needed", text))
                return
        if self._stream.is_plain:
            return
        try:
            pieces = self._stream.read(data)
        except ssl.SSLError as error:
            log.info("a peer and this bridge found no TLS that both speak: %s", error.reason)
            self._stream.close()
            return
        for piece in pieces:
            if piece:
                self._http.data_received(piece)
            elif not self.eof_received():
                self._stream.close()

    def eof_received(self) -> bool:
        """Pass on, once, that no more comes; TLS says it, then the socket."""
        if self._has_eof:
            return not self._stream.is_closing()
        self._has_eof = True
        return self._http.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._http.connection_lost(exc)
