"""Configuration of a client: as settings of a command (`ClientSettings`) and as checked arguments (`ClientConfig`)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, cast

from ..protocol.addresses import EXAMPLE, check_endpoint
from ..protocol.errors import ConfigurationError
from ..protocol.limits import MAX_BROKERS, MAX_OUTSTANDING, MAX_OUTSTANDING_BRIDGE, MAX_TTL_MS
from ..protocol.names import check_service, is_service, is_unicode
from ..protocol.settings import LOG_LEVELS, CommonSettings, setting
from . import arguments

if TYPE_CHECKING:
    from ..protocol.join_line import JoinLine
    from ..protocol.keys import PeerKeys

DEFAULT_BROKER: Final = "tcp://127.0.0.1:7555"
MAX_WAITING: Final = 16_384
"""Requests that wait in the library for room at the broker: four times what the largest client may have there."""


@dataclass(frozen=True, kw_only=True)
class ClientSettings(CommonSettings):
    """Settings of everything that is a client."""

    role: ClassVar[str] = "client"

    log_level: str = setting(  # no bare name: a client obeys nothing that is said to servers, ours or others
        "info", choices=LOG_LEVELS, help="Least important messages that are logged."
    )
    broker: tuple[str, ...] = setting(
        (DEFAULT_BROKER,), metavar="ENDPOINT[,ENDPOINT]", help="Broker to ask, and those to turn to when it is lost."
    )
    connect_timeout_s: float = setting(5.0, minimum=0.1, maximum=3600, help="Longest wait for a broker to answer.")
    timeout_s: float = setting(
        30.0, minimum=0.001, maximum=86_400, help="Longest time without progress of an answer: tokens, prompt, queue."
    )
    total_timeout_s: float | None = setting(
        None, minimum=0.001, maximum=86_400, help="Longest time of an answer in all, however it goes on."
    )
    default_model: str | None = setting(
        None, metavar="MODEL", check=check_service, help="Model asked when none is named."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What the library works with, checked."""

    endpoints: tuple[str, ...]
    keys: Path | None = None
    line_keys: PeerKeys | None = None
    """Those of a line to join by; `keys` does not count then."""
    insecure: bool = False
    connect_timeout_s: float = 5.0
    timeout_s: float = 30.0
    total_s: float | None = None
    default_model: str | None = None
    name: str = "python"
    max_outstanding: int = MAX_OUTSTANDING
    max_waiting: int = MAX_WAITING
    as_admin: bool = False

    def __post_init__(self) -> None:
        """Refuse what no broker could serve."""
        if not 1 <= len(self.endpoints) <= MAX_BROKERS:
            raise ConfigurationError(f"name 1 to {MAX_BROKERS} brokers, not {len(self.endpoints)}")
        for endpoint in self.endpoints:
            check_endpoint(endpoint)
            if endpoint.endswith((":0", ":*")):
                raise ConfigurationError(f"{endpoint!r} names no port to connect to; expected something like {EXAMPLE}")
        times = {"connect_timeout_s": self.connect_timeout_s, "timeout_s": self.timeout_s}
        if self.total_s is not None:
            times["total_s"] = self.total_s
        for name, value in times.items():
            if not _is_number(value) or not 0 < value <= MAX_TTL_MS / 1000:
                raise ConfigurationError(
                    f"{name} is {arguments.shown(value)}; it must be above 0, and at most {MAX_TTL_MS // 1000} seconds"
                )
        if type(self.max_outstanding) is not int or not 1 <= self.max_outstanding <= MAX_OUTSTANDING_BRIDGE:
            raise ConfigurationError(f"max_outstanding must be a number between 1 and {MAX_OUTSTANDING_BRIDGE}")
        _check_name(self.name)
        _check_model(self.default_model)


def read_endpoints(brokers: object) -> tuple[str, ...]:
    """Read one endpoint, several, or several in one text. Raises ConfigurationError."""
    listed: object = brokers.split(",") if isinstance(brokers, str) else brokers
    if isinstance(listed, bytes) or not isinstance(listed, Iterable):
        raise ConfigurationError(f"brokers: expected an endpoint or several, got {arguments.kind_of(brokers)}")
    found: list[str] = []
    for endpoint in cast("Iterable[object]", listed):
        if not isinstance(endpoint, str):
            raise ConfigurationError(f"brokers: expected endpoints, which are text, got {arguments.shown(endpoint)}")
        found.append(endpoint.strip())
    return tuple(filter(None, found))


def read_client_line(text: object) -> JoinLine:
    """Read a line to join by that opens the port of clients. Raises ConfigurationError."""
    from ..protocol.join_line import read_line, refuse_expired  # few programs have one

    if not isinstance(text, str):
        raise ConfigurationError(f"join: expected a line to join by, got {arguments.kind_of(text)}")
    line = read_line(text)
    refuse_expired(line)
    if line.is_once:
        raise ConfigurationError("join: this line is good once; 'zmqrt join' makes keys by it that a program can use")
    if line.is_worker:
        raise ConfigurationError("join: this line is for workers; ask for one for clients")
    return line


def read_folder(keys: object) -> Path | None:
    """Read the path of a folder of keys. Raises ConfigurationError."""
    if keys is None:
        return None
    try:
        path = Path(cast("str", keys))
        is_possible = b"\0" not in os.fsencode(path)
    except (TypeError, ValueError):
        is_possible, path = False, Path()
    if not is_possible:
        raise ConfigurationError(f"keys: {arguments.shown(keys)} cannot be the path of a folder")
    return path


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not is_unicode(name):
        raise ConfigurationError(f"name: {arguments.shown(name)} is no text that UTF-8 can carry")


def _check_model(name: object) -> None:
    if name is not None and not (isinstance(name, str) and (not name or is_service(name))):
        raise ConfigurationError(f"default_model: {arguments.shown(name)} cannot be the name of a model")
