"""Speaks HTTP/1.1 with one peer: bytes in, exchanges one after the other, bytes out, and an end to every wait.

uvicorn's own class trusts its peers more than a service may (docs/adr/0007); this one stands in its place. A connection
goes through these states, each with the clock that ends it:

* *waiting* for the next head (`keep_alive_timeout_s`, for the first one `head_timeout_s`): nothing of it has come;
* *reading a head* (`head_timeout_s`): its first bytes have come, its end has not;
* *in an exchange*: the app runs. The rest of the body has `body_timeout_s`, a reader that takes nothing has
  `write_timeout_s`. Requests that come meanwhile stay bytes, READ_AHEAD_BYTES of them; then nothing is read until the
  answer before is out;
* *lingering* (`_LINGER_S`): the last answer is out and our half is closed. What still comes is thrown away, since
  closing a socket with unread bytes makes the system reset it, which takes the answer from its reader;
* *closing*: what is in the buffer goes out, within `write_timeout_s`.

A caller who has ended its sending half may still read, so that ends nothing: only a byte that its machine refuses does
(`PeerProbe`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from ..client.calls import new_rid
from .config import BridgeSettings
from .connection_limits import Clock, ConnectionLimit, PeerProbe, most_connections
from .cors import Origins
from .errors import RefusedError, refusal
from .exchange import STATUS_LINES, Exchange
from .forwarded import TrustedProxies
from .heads import Head
from .metrics import REFUSED
from .request_parser import RequestParser
from .tls import Certificate, TlsConnection

READ_AHEAD_BYTES: Final = 64 << 10
"""Of requests whose turn has not come; a read may bring a quarter of a megabyte more."""
WRITE_AHEAD_BYTES: Final = 64 << 10
"""Of answers that nobody has taken; then whoever writes waits."""
_LINGER_S: Final = 2.0
"""How long what a refused caller still sends is thrown away: closing at once would take the answer from it."""
log = logging.getLogger(__name__)


class HttpConnection(asyncio.Protocol):
    """One connection. Who is too slow is cut off; what ran for it sees a caller that has left."""

    settings: ClassVar[BridgeSettings]
    limit: ClassVar[ConnectionLimit]
    origins: ClassVar[Origins]
    proxies: ClassVar[TrustedProxies]

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._app = cast("ASGIApp", config.loaded_app)  # pyright: ignore[reportUnknownMemberType] - as uvicorn has it
        self._state = server_state
        self._app_state = app_state
        self._transport: asyncio.Transport
        self._client: tuple[str, int] | None
        self._server: tuple[str, int] | None
        self._is_proxy = False
        self._parser = RequestParser()
        self._is_reading_head = False
        self._exchange: Exchange | None = None
        self._advance_later: asyncio.Handle | None = None  # the rest of a body, after others had their turn
        self._has_eof = False
        self._is_over = False  # no request is taken any more
        self._reads = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._deadline = Clock()  # for the next head, or the rest of one, or of a body
        self._write_deadline = Clock()
        self._probe = PeerProbe(self.write)

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        self._transport = cast("asyncio.Transport", transport)
        self._client, self._server = _address(self._transport, "peername"), _address(self._transport, "sockname")
        self._is_proxy = self._client is not None and self.proxies.include(self._client[0])
        self._transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        self._state.connections.add(cast("Any", self))
        if not self.limit.admit(self):
            self._refuse(RefusedError(503, "too_many_connections", "this bridge has no room for a further connection"))
            self._close()
            return
        self.limit.mark_idle(self)
        self._deadline.start(self.settings.head_timeout_s, self._close)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio has it
        """Stop all clocks, and tell whoever works for it."""
        for clock in (self._deadline, self._write_deadline, self._probe):
            clock.end()
        self._is_over = True
        self._parser.drop()
        self.limit.remove(self)
        self._state.connections.discard(cast("Any", self))
        self._writable.set()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if not self._is_over:
            self._parser.feed(data)
            if self._advance_later is None:
                self._advance()
            else:
                self._throttle()

    def eof_received(self) -> bool:
        """Keep on writing what was asked for; half a request asks for nothing."""
        self._has_eof = True
        if self._is_over or self._exchange is None:
            self._close()
            return False
        if not self._parser.is_in_body:
            self._probe.start(self._exchange)
        elif self._advance_later is None:  # else the rest of the body may be here
            self._advance()
        return True

    def pause_writing(self) -> None:
        """Begin to wait for a reader that lets what was sent pile up."""
        self._writable.clear()
        self._write_deadline.start(self.settings.write_timeout_s, self._cut_off)

    def resume_writing(self) -> None:
        """Go on: it has read."""
        self._write_deadline.stop()
        self._writable.set()
        if self._transport.is_closing():  # what it has still to read piles up no more, and holds the connection
            self._write_deadline.start(self.settings.write_timeout_s, self._cut_off)

    def shutdown(self) -> None:
        """Finish what runs, and take nothing more (uvicorn calls when it drains)."""
        if self._exchange is None:
            self._close()
            return
        self._exchange.keeps_alive = False
        if self._exchange.is_complete:  # of its body nobody reads the rest
            self._linger()

    def refuse(self, error: RefusedError) -> None:
        """Refuse what is no HTTP at all, and take nothing more."""
        self._deadline.stop()
        self._give_up(error)

    def make_room(self) -> None:
        """Close: no request is under way here."""
        self._is_over = True
        self._transport.abort()

    # Called by an exchange.

    def write(self, data: bytes) -> None:
        """Send; nothing happens where the caller has left."""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until a reader has taken enough of what was sent."""
        if self._transport.is_closing():  # nothing holds up who writes any more, and the news needs a turn of the loop
            await asyncio.sleep(0)
        if not self._writable.is_set():
            await self._writable.wait()

    def want_body(self) -> None:
        """Read on, if reading stood still for a body that nobody asked for."""
        self._throttle()

    def answered(self) -> None:
        """Go on with the next request, or wait for it, or for the rest of this one, or close."""
        assert self._exchange is not None
        self._probe.stop()
        self._state.total_requests += 1
        self.limit.mark_idle(self)
        if not self._parser.is_in_body:
            self._go_on(keeps_alive=self._exchange.keeps_alive)
        elif not self._exchange.keeps_alive:
            self._linger()
        else:
            self._throttle()

    def cut_short(self) -> None:
        """Close: the answer broke off, and its reader has to see that."""
        self._close()

    # Reading.

    def _advance(self) -> None:
        """Read as far as it is this connection's turn."""
        self._advance_later = None
        try:
            while self._parser.waiting and not self._is_over:
                if self._parser.is_in_body:
                    if self._take_piece() and self._parser.waiting:  # others come first
                        self._advance_later = asyncio.get_running_loop().call_soon(self._advance)
                        break
                elif self._exchange is not None or not self._take_head():
                    break
        except RefusedError as error:
            self._give_up(error)
        if self._has_eof and self._parser.is_in_body and not (self._parser.waiting or self._is_over):
            self._give_up(RefusedError(400, "not_http", "the body of the request ended before its length"))
        self._throttle()

    def _take_head(self) -> bool:
        head = self._parser.next_head()
        if head is not None:
            self._begin(head)
        elif self._parser.waiting and not self._is_reading_head:
            self._deadline.start(self.settings.head_timeout_s, self._close)
            self._is_reading_head = True
        return head is not None

    def _begin(self, head: Head) -> None:
        self._is_reading_head = False
        self._deadline.stop()
        self.limit.mark_busy(self)
        scope, fields = self._scope_of(head), self._state.default_headers
        self._exchange = Exchange(head, scope, self, fields, logs=self._config.access_log)
        if not self._parser.is_in_body:
            self._body_is_whole(self._exchange)
        elif not self._parser.has_rest:
            self._deadline.start(self.settings.body_timeout_s, self._body_is_late)
        task = asyncio.get_running_loop().create_task(self._exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def _body_is_whole(self, exchange: Exchange) -> None:
        exchange.end_body()
        if self._has_eof or not self._reads:
            self._probe.start(exchange)

    def _scope_of(self, head: Head) -> dict[str, Any]:
        client, scheme = self._client, self.settings.scheme
        if self._is_proxy and client is not None:
            asked_by = self.proxies.asked_by(client[0], head.fields)
            scheme = asked_by.scheme or scheme
            client = client if asked_by.address == client[0] else (asked_by.address, 0)  # its port nobody says
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method,
            "scheme": scheme,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.fields,
            "client": client,
            "server": self._server,
            "state": self._app_state.copy(),
        }

    def _take_piece(self) -> bool:
        """Pass a piece of a body on; return whether something of it is missing still."""
        exchange = self._exchange
        assert exchange is not None
        piece = self._parser.next_piece()
        if piece:
            exchange.feed(piece)
        if self._parser.is_in_body:
            return True
        self._deadline.stop()
        self._body_is_whole(exchange)
        if exchange.is_complete:
            self._go_on(keeps_alive=exchange.keeps_alive)
        return False

    def _body_is_late(self) -> None:
        """Wait no longer; an app that waits has a clock of its own, and its answer is let out."""
        assert self._exchange is not None
        self._exchange.keeps_alive = False
        if self._exchange.is_complete:
            self._linger()

    def _go_on(self, *, keeps_alive: bool) -> None:
        self._exchange = None
        if not keeps_alive or (self._has_eof and not self._parser.waiting):
            if self._parser.waiting:
                self._linger()
            else:
                self._close()
            return
        self._deadline.start(self.settings.keep_alive_timeout_s, self._close)
        if self._parser.waiting:
            self._advance()
        if self._has_eof and self._exchange is None:
            self._close()  # what is left is half a request
        self._throttle()

    def _throttle(self) -> None:
        """Read on, or not: what waits for its turn is bounded, and so is a body that nobody asks for."""
        is_ahead = self._exchange is not None and self._exchange.is_ahead
        reads = self._is_over or not (is_ahead or len(self._parser.waiting) > READ_AHEAD_BYTES)
        if reads == self._reads or self._transport.is_closing() or self._has_eof:
            return
        self._reads = reads
        if reads:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            if self._exchange is not None and not self._parser.is_in_body:
                self._probe.start(self._exchange)  # whether it is still there shows only in what it is sent

    def _give_up(self, error: RefusedError) -> None:
        """Refuse what came; an answer that has begun breaks off, since what it answers was never complete."""
        exchange, self._exchange = self._exchange, None
        origin = self._parser.origin if exchange is None else exchange.origin
        if exchange is not None:
            has_begun = exchange.has_started
            exchange.leave()
            if has_begun and not exchange.is_complete:
                self.cut_short()
                return
            if has_begun:
                self._linger()
                return
        self._refuse(error, origin)
        self._linger()

    def _refuse(self, error: RefusedError, origin: str | None = None) -> None:
        REFUSED.labels(str(error.status)).inc()
        request_id = new_rid().hex()
        if error.status < 500:  # of a lack of room, the limit tells once a minute
            log.info("refused with %d: %s", error.status, error, extra={"request_id": request_id})
        response = refusal(error, "", request_id)  # which path it meant is not known
        response.headers.update({"x-request-id": request_id, "connection": "close"})
        response.headers.update(self.origins.headers_for(origin))  # a page reads why, too
        fields = (*self._state.default_headers, *response.raw_headers)
        lines = b"".join(b"%s: %s\r\n" % (name, value) for name, value in fields)
        self.write(STATUS_LINES[error.status] + lines + b"\r\n" + bytes(response.body))

    def _linger(self) -> None:
        """Let the last answer be read: what still comes is thrown away, for a while."""
        self._is_over = True
        self.limit.mark_idle(self)
        self._parser.drop()
        self._throttle()
        if self._has_eof or self._transport.is_closing():
            self._close()
            return
        self._transport.write_eof()
        self._deadline.start(_LINGER_S, self._close)

    def _close(self) -> None:
        """Close as soon as all is sent; a reader that takes nothing is not waited for."""
        self._is_over = True
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._write_deadline.start(self.settings.write_timeout_s, self._cut_off)

    def _cut_off(self) -> None:
        log.info("a reader took nothing for %g s and is cut off", self.settings.write_timeout_s)
        self._transport.abort()  # closing would wait until it has read the rest


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    found: Sequence[Any] | None = transport.get_extra_info(name)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) and len(found) >= 2 else None


def protocol_for(bridge: BridgeSettings) -> type[asyncio.Protocol]:
    """Make the class of connections for these settings: uvicorn takes a class, not an object."""

    class Configured(HttpConnection):
        settings = bridge
        limit = ConnectionLimit(most_connections(bridge.max_connections))
        origins = Origins(bridge.cors_origins)
        proxies = TrustedProxies(bridge.proxies)

    if bridge.tls_cert is None:
        return Configured
    certificate = Certificate(bridge.tls_cert, bridge.tls_key)

    class Encrypted(TlsConnection):
        def __init__(
            self,
            config: uvicorn.Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(Configured(config, server_state, app_state, _loop), certificate)

    return Encrypted
