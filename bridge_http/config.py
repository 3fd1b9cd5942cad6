"""Settings of the HTTP bridge."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..protocol.addresses import check_endpoints, is_loopback_host, join_host
from ..protocol.errors import ConfigurationError
from ..protocol.names import check_service
from ..protocol.own_files import read_text, refuse_readable
from ..protocol.settings import CommonSettings, setting, unquoted


def is_foreign_host(host: str) -> bool:
    """Say whether HOST is somebody else's: some shells put the machine's name there, and compilers their target."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host != "localhost"
    return False


def are_foreign_keys(text: str) -> bool:
    """Say whether API_KEYS names no tenant at all: another product's. A list with one mistake is ours, and an error."""
    return not any(all(_split(entry)) for entry in unquoted(text).split(","))


def check_keys(entries: Sequence[str]) -> None:
    """Refuse entries that no request could match. Raises ValueError."""
    for entry in entries:
        tenant, key = _split(entry)
        if not (tenant and key):
            raise ValueError("expected each entry of api_keys to be tenant:key")
        if {tenant[0], key[-1]} & {"'", '"'}:
            raise ValueError("expected no quotes around tenant:key; one of a pair is missing")
    if len({_split(entry)[1] for entry in entries}) != len(entries):
        raise ValueError("expected each key of api_keys once: one is given twice, so its tenant is not known")


def _split(entry: str) -> tuple[str, str]:
    tenant, _, key = entry.partition(":")
    return unquoted(tenant), unquoted(key)


def _read_keys(path: Path) -> list[str]:
    """Return a file's entries, one a line. Raises ConfigurationError naming the file, and the line but not the key."""
    try:
        refuse_readable(path)
        lines = [unquoted(line) for line in read_text(path).splitlines()]
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            try:
                check_keys([line])
            except ValueError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True, kw_only=True)
class BridgeSettings(CommonSettings):
    """How one bridge listens, whom it lets in, and where its broker is."""

    role: ClassVar[str] = "bridge"

    host: str = setting(
        "127.0.0.1",
        env=("HOST",),
        foreign=is_foreign_host,
        help="Address to listen on; `::` is all of them.",
    )
    port: int = setting(8000, env=("PORT",), minimum=0, maximum=65535, help="Port to listen on; 0 picks a free one.")
    broker: tuple[str, ...] = setting(
        ("tcp://127.0.0.1:7555",),
        metavar="ENDPOINT[,ENDPOINT]",
        check=check_endpoints,
        help="Brokers, the preferred one first.",
    )
    default_model: str | None = setting(
        None,
        metavar="NAME",
        check=check_service,
        help="Model of /infer; without it the only one that generates text.",
    )
    request_timeout_s: float = setting(
        30.0, env=("REQUEST_TIMEOUT_SEC",), minimum=0.001, help="Longest wait for an answer; then 504."
    )
    body_limit_bytes: int = setting(4 << 20, minimum=1, help="Largest body of a request; above it 413.")
    body_timeout_s: float = setting(30.0, minimum=0.001, help="Longest time for a body to arrive; then 408.")
    head_timeout_s: float = setting(10.0, minimum=0.001, help="Longest time for the head of a request to arrive.")
    write_timeout_s: float = setting(
        30.0, minimum=0.001, help="Longest time that a reader may let its answer pile up; then it is cut off."
    )
    api_keys: tuple[str, ...] = setting(
        (),
        env=("API_KEYS",),
        metavar="TENANT:KEY[,TENANT:KEY]",
        check=check_keys,
        foreign=are_foreign_keys,
        secret=True,
        help="Who may ask: as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
    )
    api_keys_file: Path | None = setting(
        None, metavar="FILE", help="File with one TENANT:KEY a line, which the list of processes does not show."
    )
    allow_host: tuple[str, ...] = setting(
        (), metavar="NAME[,NAME]", help="Host names that requests may use while there are no API keys."
    )
    drain_timeout_s: float = setting(30.0, minimum=0.0, help="Time to finish what runs after SIGTERM.")
    traces: str = setting(
        "none",
        choices=("none", "otlp", "console"),
        help="Send OpenTelemetry spans; where to, OTEL_EXPORTER_OTLP_ENDPOINT says. Needs zmqrt[trace].",
    )
    access_log: bool = setting(False, help="Log every request.")

    def __post_init__(self) -> None:
        """Refuse keys that no request could match."""
        check_keys(self.api_keys)
        _ = self.tenants  # reads the file of keys: a mistake there is known at the start, too

    @functools.cached_property
    def tenants(self) -> dict[str, str]:
        """Key -> tenant."""
        entries = [*self.api_keys, *(_read_keys(self.api_keys_file) if self.api_keys_file is not None else ())]
        tenants = {key: tenant for tenant, key in map(_split, entries)}
        if len(tenants) != len(entries):
            raise ConfigurationError("api_keys: one key is given twice, so its tenant is not known")
        return tenants

    def check_exposure(self) -> None:
        """Refuse to serve strangers.

        Raises:
            ConfigurationError: not loopback, no API keys, and not overridden.
        """
        if self.tenants or self.insecure or is_loopback_host(self.host):
            return
        raise ConfigurationError(
            f"http://{join_host(self.host.strip('[]'), self.port)} is reachable from other machines, and no API keys "
            "are set: anybody could use the models. Set API_KEYS=tenant:key (or --api-keys-file), or stay on "
            "127.0.0.1. '--insecure' overrides this on a network you trust."
        )
