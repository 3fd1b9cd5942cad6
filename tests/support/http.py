"""HTTP to a bridge process, by hand: requests that are cut off, streams read event by event."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from support.stack import Process

EVENTS = {"accept": "text/event-stream"}


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: Any
    id: str = ""


def address_of(bridge: Process) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = bridge.endpoints["http"].removeprefix("http://").rpartition(":")
    return host, int(port)


@contextlib.contextmanager
def asked(
    bridge: Process, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Generator[http.client.HTTPResponse]:
    """Ask, and give the answer while it is open; leaving early cuts the connection."""
    connection = http.client.HTTPConnection(*address_of(bridge), timeout=60)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, raw, dict(headers or {}))
        yield connection.getresponse()
    finally:
        connection.close()


def answer_of(
    bridge: Process, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Ask and return status, JSON, and headers in small letters."""
    with asked(bridge, method, path, body, headers) as answer:
        return answer.status, json.loads(answer.read()), {name.lower(): one for name, one in answer.headers.items()}


def events_of(answer: http.client.HTTPResponse) -> Generator[Event]:
    """Read events as they come."""
    fields: dict[str, str] = {}
    for line in answer:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield Event(fields.get("event", ""), json.loads(fields["data"]), fields.get("id", ""))
            fields = {}


@contextlib.contextmanager
def calling(
    bridge: Process, path: str, body: bytes, *, headers: Mapping[str, str] | None = None, sent: int | None = None
) -> Generator[socket.socket]:
    """POST on a bare socket, of the body only so many bytes; leaving closes it, as a killed client does."""
    named = {"host": "localhost", "content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    with socket.create_connection(address_of(bridge)) as caller:
        caller.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body[:sent])
        yield caller
