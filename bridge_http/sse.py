"""Server-sent events as bytes. Pure: one event in, its lines out."""

from __future__ import annotations

from typing import Final

from .errors import encode

MEDIA_TYPE: Final = "text/event-stream; charset=utf-8"
HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""A proxy that buffers or caches would hold the tokens back until the end."""
KEEP_ALIVE: Final = b": still here\n"
"""A comment without the empty line that would end an event: some readers take every empty line for one, and choke on
its missing data. So it belongs to the next event, where it is a line that says nothing."""
KEEP_ALIVE_S: Final = 15.0
"""Proxies cut connections that are silent for 30 to 60 s."""


def event(name: str, data: object, *, id_: str = "") -> bytes:
    """Write one event; its data is one line of JSON."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {name}\ndata: ".encode() + encode(data) + b"\n\n"


def wants_stream(accept: str) -> bool:
    """Say whether an Accept header asks for events (a weight of 0 refuses them)."""
    for choice in accept.lower().split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        if media == "text/event-stream":
            return not any(parameter in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
    return False
