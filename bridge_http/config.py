"""Settings of the HTTP bridge."""

from __future__ import annotations

import functools
import ipaddress
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..protocol.addresses import check_endpoints, is_loopback_host, join_host
from ..protocol.api_keys import ApiKey, are_foreign_keys, check_keys, read_key_file, read_ring
from ..protocol.errors import ConfigurationError
from ..protocol.names import check_service
from ..protocol.origins import ANY, Host, Origin, host_pattern, is_address, origin_pattern
from ..protocol.settings import CommonSettings, setting
from .forwarded import Network, read_networks

log = logging.getLogger(__name__)


def is_foreign_host(host: str) -> bool:
    """Return whether HOST is somebody else's: some shells put the machine's name there, and compilers their target."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host != "localhost"
    return False


def check_hosts(values: Sequence[str]) -> None:
    """Refuse names that no Host could match. Raises ValueError."""
    for value in values:
        _ = origin_pattern(value) if _is_app(value) else host_pattern(value)


def check_origins(values: Sequence[str]) -> None:
    """Refuse what no Origin could match. Raises ValueError."""
    for value in values:
        origin_pattern(value)


def check_networks(values: Sequence[str]) -> None:
    """Refuse what no address could be in. Raises ValueError."""
    _ = read_networks(values)


def _is_app(value: str) -> bool:
    """Return whether a value of allow_host is the origin of an app, which names itself where browsers name a page."""
    return value == "null" or ("://" in value and not value.lower().startswith(("http:", "https:")))


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
    tls_cert: Path | None = setting(
        None, metavar="FILE", help="Speak TLS by this certificate (PEM, with its chain); read again when changed."
    )
    tls_key: Path | None = setting(
        None, metavar="FILE", help="Private key of the certificate; without it the same file holds both."
    )
    trusted_proxy: tuple[str, ...] = setting(
        (),
        metavar="ADDRESS[,NETWORK]",
        check=check_networks,
        help="Proxies whose X-Forwarded-For, X-Forwarded-Proto and Forwarded are believed.",
    )
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
        30.0,
        env=("REQUEST_TIMEOUT_SEC",),
        minimum=0.001,
        maximum=86_400,
        help="Longest time of a whole answer of /infer; of streams and on /v1, the longest without progress. Then 504.",
    )
    max_request_timeout_s: float = setting(
        600.0,
        minimum=0.001,
        maximum=86_400,
        help="Most that a request may ask for with the header X-Request-Timeout.",
    )
    request_total_timeout_s: float | None = setting(
        None,
        minimum=0.001,
        maximum=86_400,
        help="Longest time of a stream, or of an answer on /v1, in all; else as long as it makes progress.",
    )
    body_limit_bytes: int = setting(4 << 20, minimum=1, help="Largest body of a request; above it 413.")
    body_timeout_s: float = setting(30.0, minimum=0.001, help="Longest time for a body to arrive; then 408.")
    head_timeout_s: float = setting(10.0, minimum=0.001, help="Longest time for the head of a request to arrive.")
    keep_alive_timeout_s: float = setting(
        120.0, minimum=0.001, help="Longest time that a connection may idle between two requests."
    )
    max_connections: int = setting(
        0, minimum=0, help="Connections at once; idle ones make room. 0: as many as the limit of open files allows."
    )
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
        None,
        metavar="FILE",
        help="File with a TENANT:KEY a line, or its hash and what goes for it; read again when changed.",
    )
    allow_host: tuple[str, ...] = setting(
        (),
        metavar="NAME[,NAME]",
        check=check_hosts,
        help="Names that requests may use in Host while there are no API keys: NAME, NAME:PORT or *.NAME.",
    )
    cors_origin: tuple[str, ...] = setting(
        (),
        metavar="ORIGIN[,ORIGIN]",
        check=check_origins,
        help="Pages that browsers let read answers: https://NAME, https://*.NAME, app://NAME, null, or * for all.",
    )
    usage_file: Path | None = setting(
        None, metavar="FILE", help="Count what each tenant has had here (SQLite); bridges of one machine may share it."
    )
    audit_log: Path | None = setting(
        None, metavar="FILE", help="Write a line of JSON for each request for work, without prompts and answers."
    )
    unrecorded: str = setting(
        "serve",
        choices=("serve", "refuse"),
        help="What becomes of requests while usage file or audit log cannot be written: answered, or 503.",
    )
    drain_timeout_s: float = setting(30.0, minimum=0.0, help="Time to finish what runs after SIGTERM.")
    traces: str = setting(
        "none",
        choices=("none", "otlp", "console"),
        help="Send OpenTelemetry spans; where to, OTEL_EXPORTER_OTLP_ENDPOINT says. Needs zmqrt[trace].",
    )
    access_log: bool = setting(False, help="Log every request.")

    def __post_init__(self) -> None:
        """Refuse what no request could match."""
        check_keys(self.api_keys)
        check_hosts(self.allow_host)
        check_origins(self.cors_origin)
        check_networks(self.trusted_proxy)
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigurationError("tls_key is set and tls_cert is not: name the certificate as well")
        _ = self.key_ring  # reads the file of keys: a mistake there is known at the start, too

    @functools.cached_property
    def key_ring(self) -> dict[bytes, ApiKey]:
        """Hash of a key, as it may stand in a header -> the key."""
        in_file = read_key_file(self.api_keys_file) if self.api_keys_file is not None else []
        try:
            return read_ring([*self.api_keys, *in_file])
        except ValueError as error:
            raise ConfigurationError(str(error)) from None

    @property
    def scheme(self) -> str:
        """What is spoken at the port."""
        return "http" if self.tls_cert is None else "https"

    @functools.cached_property
    def proxies(self) -> tuple[Network, ...]:
        """What `trusted_proxy` means."""
        return read_networks(self.trusted_proxy)

    @functools.cached_property
    def cors_origins(self) -> tuple[Origin, ...]:
        """What `cors_origin` means."""
        return tuple(map(origin_pattern, self.cors_origin))

    @functools.cached_property
    def known_hosts(self) -> tuple[Host, ...]:
        """What `allow_host` means, and the bridge's own name: who started it there meant that."""
        bare = self.host.strip("[]")
        own = () if not bare or is_address(bare.partition("%")[0]) else (host_pattern(bare),)
        return (*own, *(host_pattern(name) for name in self.allow_host if not _is_app(name)))

    @functools.cached_property
    def known_origins(self) -> tuple[Origin, ...]:
        """The origins that may ask: pages that may read answers, and apps that need no leave to."""
        return (*self.cors_origins, *(origin_pattern(name) for name in self.allow_host if _is_app(name)))

    @property
    def is_open_to_names(self) -> bool:
        """Whether anybody's page may ask, so that names say nothing any more."""
        return self.insecure or any(origin.scheme == ANY for origin in self.cors_origins)

    def warn(self) -> None:
        """Log what an operator should know about these settings."""
        keyed = "whoever has a key" if self.key_ring else "everybody, since there are no API keys"
        if any(origin.scheme == ANY for origin in self.cors_origins):
            log.warning("cors_origin is *: any page in any browser may use this bridge, of %s", keyed)
        if self.tls_cert is None and not self.trusted_proxy and self.key_ring and not is_loopback_host(self.host):
            log.warning(
                "API keys, prompts and answers come to %s:%s in clear: give --tls-cert, or name the proxy that speaks "
                "TLS before this bridge with --trusted-proxy",
                self.host,
                self.port,
            )
        if ANY in self.allow_host and not self.key_ring:
            log.warning("allow_host is *: a page that makes its name point here (DNS rebinding) may use this bridge")

    def check_exposure(self) -> None:
        """Refuse to serve strangers.

        Raises:
            ConfigurationError: not loopback, no API keys, and not overridden.
        """
        if self.key_ring or self.insecure or is_loopback_host(self.host):
            return
        address = f"{self.scheme}://{join_host(self.host.strip('[]'), self.port)}"
        raise ConfigurationError(
            f"{address} is reachable from other machines, and no API keys are "
            "set: anybody could use the models. Set API_KEYS=tenant:key (or --api-keys-file), or stay on "
            "127.0.0.1. '--insecure' overrides this on a network you trust."
        )
