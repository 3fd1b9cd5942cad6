"""Reads the head of a request, or refuses it with a status. Pure.

llhttp judges the syntax. Beyond it, whatever two servers in a row could read in two ways is refused here: that is how a
request is smuggled past the first of them. Upgrades are never taken, so a head that asks for one is like any other.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

import httptools
import msgspec

from .errors import RefusedError

MAX_HEAD_BYTES: Final = 64 << 10
"""Request line and fields. Browsers and proxies send a few KiB; the largest tokens and cookies in use are 16 KiB."""
MAX_FIELDS: Final = 100
"""A request through three proxies has some forty."""
_END: Final = b"\r\n\r\n"
_LINE: Final = re.compile(rb"([A-Z][A-Z_-]*) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_NAMES: Final = re.compile(rb"\r\n([^:\r\n]+):")
_VALUES: Final = re.compile(rb"\r\n[^:\r\n]+:[ \t]*((?:[^\r\n]*[^\r\n \t])?)")
"""Without the spaces around them."""
_HOST: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+;=:%\[\]-]*")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
_ONLY_ONCE: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})
_MAX_DIGITS: Final = 18
"""Of a Content-Length: an exabyte. Python refuses to read numbers that are much longer."""
Field = tuple[bytes, bytes]


class Head(msgspec.Struct):
    """What a head says. `length` is that of the body; None: it comes in chunks. Fields have names in small letters.

    `headers` are the same as text; of two with one name the first counts.
    """

    method: str
    version: str
    path: str
    raw_path: bytes
    query: bytes
    fields: list[Field]
    headers: dict[str, str]
    keeps_alive: bool
    expects_continue: bool
    length: int | None


def end_of_head(raw: bytearray, seen: int) -> int:
    """Return how many bytes the head has, or 0 while its end has not come; `seen` bytes were looked at before.

    Raises:
        RefusedError: it has no end within the limit, or its beginning is not HTTP.
    """
    at = raw.find(_END, max(0, seen - len(_END) + 1), MAX_HEAD_BYTES)
    if at >= 0:
        return at + len(_END)
    line = raw.find(b"\r\n", 0, MAX_HEAD_BYTES)
    if len(raw) >= MAX_HEAD_BYTES:
        raise _too_large() if line >= 0 else _too_long()
    if line >= 0 and seen <= line + 1:
        _read_line(bytes(raw[:line]))
    elif raw and not raw[:1].isupper():
        raise _not_http(bytes(raw[:1]))
    return 0


def read_head(raw: bytes) -> Head:
    """Read a whole head. Raises RefusedError."""
    method, target, version = _read_line(raw[: raw.index(b"\r\n")])
    count = raw.count(b"\r\n") - 2
    if count > MAX_FIELDS:
        text = f"the head has more than {MAX_FIELDS} fields, the limit of this bridge"
        raise RefusedError(431, "head_too_large", text)
    _judge(raw)
    names, values = _NAMES.findall(raw.lower()), _VALUES.findall(raw)
    if not len(names) == len(values) == count:
        raise RefusedError(400, "not_http", "the head of the request is not HTTP/1.1: a line of it is no field")
    fields = list(zip(names, values, strict=True))
    headers = dict(zip(_texts(names[::-1]), _texts(values[::-1]), strict=True)) if fields else {}
    if len(headers) < count:
        _refuse_doubles(fields)
    path, host = _path_of(method, target)
    if host is not None:  # RFC 9112 3.2.2: a target with a name counts, and the field does not
        fields = [(b"host", host), *(field for field in fields if field[0] != b"host")]
        headers["host"] = host.decode("ascii")
    elif "host" not in headers and version == "1.1":
        raise RefusedError(400, "bad_host", "the request has no Host field, and HTTP/1.1 asks for one")
    if not _HOST.fullmatch(headers.get("host", "")):
        raise RefusedError(400, "bad_host", "the Host field is neither a name nor an address")
    raw_path, _, query = path.partition(b"?")
    options = _connection_options(fields) if "connection" in headers else ()
    return Head(
        method=method,
        version=version,
        path=unquote(raw_path.decode("ascii")) if b"%" in raw_path else raw_path.decode("ascii"),
        raw_path=raw_path,
        query=query,
        fields=fields,
        headers=headers,
        keeps_alive=b"close" not in options and (version == "1.1" or b"keep-alive" in options),
        expects_continue=version == "1.1" and "expect" in headers and _expects_continue(fields),
        length=_length_of(headers, version),
    )


def _read_line(line: bytes) -> tuple[str, bytes, str]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise _not_http(line)
    method, target, major, minor = found.groups()
    if major != b"1":
        text = "this bridge speaks HTTP/1.1; HTTP/2 and later belong in a proxy before it"
        raise RefusedError(505, "http_version", text)
    if method == b"CONNECT":
        raise RefusedError(405, "method_not_allowed", "this bridge is no proxy")
    return method.decode(), target, "1.0" if minor == b"0" else "1.1"


def _not_http(beginning: bytes) -> RefusedError:
    text = "this is not a request of HTTP/1.1"
    if beginning[:1] == b"\x16":
        text += "; it looks like TLS, which this bridge was not told to speak (--tls-cert): use http://, not https://"
    return RefusedError(400, "not_http", text)


def _too_large() -> RefusedError:
    text = f"the head of the request is larger than {MAX_HEAD_BYTES} bytes, the limit of this bridge"
    return RefusedError(431, "head_too_large", text)


def _too_long() -> RefusedError:
    text = f"the first line of the request is longer than {MAX_HEAD_BYTES} bytes, the limit of this bridge"
    return RefusedError(414, "target_too_long", text)


class _Listener:
    """Hears from llhttp that a head is whole. It sees nothing else: a body is never fed to the parser of its head."""

    is_complete = False

    def on_headers_complete(self) -> None:
        """Have all."""
        self.is_complete = True


def _judge(raw: bytes) -> None:
    """Refuse what is no head by its syntax. Its fields are read apart: a call for each took longer than all of this."""
    listener = _Listener()
    try:
        httptools.HttpRequestParser(listener).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # one that is not taken
    except httptools.HttpParserInvalidMethodError:
        raise RefusedError(501, "method_unknown", "the method of the request is not known") from None
    except httptools.HttpParserError as error:
        raise RefusedError(400, "not_http", f"the head of the request is not HTTP/1.1: {error}") from None
    if not listener.is_complete:
        raise _not_http(raw)


def _texts(each: list[bytes]) -> list[str]:
    """Decode each, in one call; no name and no value holds the end of a line."""
    return b"\n".join(each).decode("latin-1").split("\n")


def _refuse_doubles(fields: list[Field]) -> None:
    """Refuse two of those that may come once: they are two readings."""
    seen: set[bytes] = set()
    for name, _ in fields:
        if name in seen and name in _ONLY_ONCE:
            reason = "bad_host" if name == b"host" else "not_http"
            raise RefusedError(400, reason, f"the request has two {name.decode().title()} fields")
        seen.add(name)


def _connection_options(fields: list[Field]) -> list[bytes]:
    values = b",".join(value for name, value in fields if name == b"connection").lower()
    return [option.strip() for option in values.split(b",")]


def _path_of(method: str, target: bytes) -> tuple[bytes, bytes | None]:
    """Return path and query, and the host if the target names it."""
    if target.startswith(b"/"):
        return target.partition(b"#")[0], None
    if found := _ABSOLUTE.fullmatch(target):
        host, path = found.groups()
        return path if path.startswith(b"/") else b"/" + path, host
    if target == b"*" and method == "OPTIONS":
        return target, None
    raise RefusedError(400, "not_http", "the target of the request is neither a path nor a URL")


def _length_of(headers: dict[str, str], version: str) -> int | None:
    encoding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if encoding is not None:
        if length is not None or version == "1.0":
            raise RefusedError(400, "not_http", "Transfer-Encoding is said beside Content-Length, or in HTTP/1.0")
        if encoding.lower() != "chunked":
            raise RefusedError(501, "encoding_unknown", "the only transfer encoding here is 'chunked'")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()) or len(length) > _MAX_DIGITS:
        raise RefusedError(400, "not_http", "the Content-Length is not a number of bytes")
    return int(length)


def _expects_continue(fields: list[Field]) -> bool:
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in fields)
