"""Judge the machine: open files, clock, and who is at the ports that zmqrt uses by default. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from .check import Check

GROUP: Final = "machine"
FILES_WANTED: Final = 4096
"""Each connection of a broker or bridge is a descriptor, and a restart brings all of them at once."""
_UNLIMITED: Final = 1 << 32
_EARLIEST_UNIX_S: Final = 1_735_689_600
"""2025-01-01: there was no zmqrt before it, so an earlier clock was never set."""
_LATEST_UNIX_S: Final = 4_102_444_800
"""2100-01-01."""
SET_CLOCK: Final = "let the machine keep time by NTP (on Linux: timedatectl set-ntp true)"

Kind = Literal["nobody", "broker", "bridge", "other"]


@dataclass(frozen=True, slots=True)
class Port:
    """A default port: what it is for, and how to use another one."""

    number: int
    purpose: str
    expected: Kind
    remedy: str


PORTS: Final = (
    Port(7555, "clients", "broker", "zmqrt-broker --clients tcp://127.0.0.1:PORT"),
    Port(7556, "workers", "broker", "zmqrt-broker --workers tcp://127.0.0.1:PORT"),
    Port(8000, "HTTP", "bridge", "zmqrt-bridge --port PORT"),
)
_HOLDERS: Final[dict[Kind, str]] = {
    "nobody": "free",
    "broker": "in use by a broker (it speaks ZeroMQ)",
    "bridge": "in use by a bridge",
    "other": "in use by another program",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is so here. `open_files` is None where there is no such limit (Windows)."""

    open_files: int | None
    unix_s: float
    holders: Mapping[Port, Kind]


def judge(here: Machine) -> list[Check]:
    """Judge all of it."""
    return [
        *_open_files(here.open_files),
        _clock(here.unix_s),
        *(_port(port, kind) for port, kind in here.holders.items()),
    ]


def _open_files(limit: int | None) -> Iterator[Check]:
    if limit is None:
        return
    if limit >= FILES_WANTED:
        found = "no limit" if limit >= _UNLIMITED else f"at most {limit}"
        yield Check(GROUP, "open files", "ok", found)
        return
    remedy = (
        f"raise it where a broker or bridge is started: ulimit -n {16 * FILES_WANTED} "
        f"(systemd: LimitNOFILE={16 * FILES_WANTED})"
    )
    yield Check(GROUP, "open files", "note", f"at most {limit}; each connection of a broker takes one", remedy)


def _clock(unix_s: float) -> Check:
    if _EARLIEST_UNIX_S <= unix_s < _LATEST_UNIX_S:
        return Check(GROUP, "clock", "ok", "plausible")
    is_past = unix_s < _EARLIEST_UNIX_S
    when = "before 2025" if is_past else "after 2099"
    found = f"it says that it is {when}: downloads over TLS fail, and logs lie"
    return Check(GROUP, "clock", "bad", found, SET_CLOCK)


def _port(port: Port, kind: Kind) -> Check:
    name = f"port {port.number}"
    found = f"{_HOLDERS[kind]} (for {port.purpose})" if kind == "nobody" else _HOLDERS[kind]
    if kind in ("nobody", port.expected):
        return Check(GROUP, name, "ok", found)
    return Check(GROUP, name, "note", found, f"end it, or use another port: {port.remedy}")
