"""What a client can be told: as arguments in a program, as settings on a command line. One leads to the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from ..protocol.addresses import EXAMPLE, check_endpoint
from ..protocol.errors import ConfigurationError
from ..protocol.limits import MAX_BROKERS, MAX_OUTSTANDING, MAX_OUTSTANDING_BRIDGE
from ..protocol.names import check_service
from ..protocol.settings import LOG_LEVELS, CommonSettings, setting

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
        30.0, minimum=0.001, maximum=86_400, help="Longest wait for an answer, or for the next part of a stream."
    )
    default_model: str | None = setting(
        None, metavar="MODEL", check=check_service, help="Model asked when none is named."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What the library works with, checked."""

    endpoints: tuple[str, ...]
    keys: Path | None = None
    insecure: bool = False
    connect_timeout_s: float = 5.0
    timeout_s: float = 30.0
    default_model: str | None = None
    name: str = "python"
    max_outstanding: int = MAX_OUTSTANDING
    max_waiting: int = MAX_WAITING

    def __post_init__(self) -> None:
        """Refuse what no broker could serve."""
        if not 1 <= len(self.endpoints) <= MAX_BROKERS:
            raise ConfigurationError(f"name 1 to {MAX_BROKERS} brokers, not {len(self.endpoints)}")
        for endpoint in self.endpoints:
            check_endpoint(endpoint)
            if endpoint.endswith((":0", ":*")):
                raise ConfigurationError(f"{endpoint!r} names no port to connect to; expected something like {EXAMPLE}")
        for name, value in (("connect_timeout_s", self.connect_timeout_s), ("timeout_s", self.timeout_s)):
            if not value > 0:
                raise ConfigurationError(f"{name} is {value}; it must be above 0")
        if not 1 <= self.max_outstanding <= MAX_OUTSTANDING_BRIDGE:
            raise ConfigurationError(f"max_outstanding must lie between 1 and {MAX_OUTSTANDING_BRIDGE}")


def make_config(
    brokers: str | Sequence[str],
    *,
    keys: str | os.PathLike[str] | None,
    insecure: bool,
    connect_timeout_s: float,
    timeout_s: float,
    default_model: str | None,
    name: str,
    max_outstanding: int,
) -> ClientConfig:
    """Check the arguments of a client. Raises ConfigurationError naming the one that is wrong."""
    listed = brokers.split(",") if isinstance(brokers, str) else brokers
    return ClientConfig(
        endpoints=tuple(endpoint.strip() for endpoint in listed if endpoint.strip()),
        keys=Path(keys) if keys is not None else None,
        insecure=insecure,
        connect_timeout_s=connect_timeout_s,
        timeout_s=timeout_s,
        default_model=default_model,
        name=name,
        max_outstanding=max_outstanding,
    )
