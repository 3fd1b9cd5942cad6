"""Settings of the HTTP bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..protocol.errors import ConfigurationError
from ..protocol.settings import CommonSettings, setting
from ..protocol.transport import is_loopback


@dataclass(frozen=True, kw_only=True)
class BridgeSettings(CommonSettings):
    """How one bridge listens, whom it lets in, and where its broker is."""

    role: ClassVar[str] = "bridge"

    host: str = setting("127.0.0.1", env=("HOST",), help="Address to listen on.")
    port: int = setting(8000, env=("PORT",), minimum=0, maximum=65535, help="Port to listen on; 0 picks a free one.")
    broker: tuple[str, ...] = setting(
        ("tcp://127.0.0.1:7555",), metavar="ENDPOINT[,ENDPOINT]", help="Brokers, the preferred one first."
    )
    default_model: str | None = setting(
        None, metavar="NAME", help="Model of /infer; without it the only one that generates text."
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
        secret=True,
        help="Who may ask: as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
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
        for entry in self.api_keys:
            tenant, colon, key = entry.partition(":")
            if not (tenant and colon and key):
                raise ValueError("api_keys: each entry is tenant:key")
        if len(self.tenants) != len(self.api_keys):
            raise ValueError("api_keys: one key is given twice, so its tenant is not known")

    @property
    def tenants(self) -> dict[str, str]:
        """Key -> tenant."""
        return {key: tenant for tenant, _, key in (entry.partition(":") for entry in self.api_keys)}

    def check_exposure(self) -> None:
        """Refuse to serve strangers.

        Raises:
            ConfigurationError: not loopback, no API keys, and not overridden.
        """
        if self.api_keys or self.insecure or is_loopback(f"tcp://{self.host}:{self.port}"):
            return
        raise ConfigurationError(
            f"http://{self.host}:{self.port} is reachable from other machines, and no API keys are set: anybody could "
            "use the models. Set API_KEYS=tenant:key (or --api-keys), or stay on 127.0.0.1. "
            "'--insecure' overrides this on a network you trust."
        )
