"""Settings of a broker."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import ClassVar, Final

from ..protocol import limits
from ..protocol.addresses import check_endpoint, join_host
from ..protocol.errors import ConfigurationError
from ..protocol.names import check_name
from ..protocol.settings import CommonSettings, setting
from ..protocol.timing import Timing
from .bounds import Bounds

DEFAULT_CLIENTS: Final = "tcp://127.0.0.1:7555"
DEFAULT_WORKERS: Final = "tcp://127.0.0.1:7556"


def check_host(host: str) -> None:
    """Refuse what could not stand in an endpoint. Raises ValueError."""
    try:
        check_endpoint(f"tcp://{join_host(host, 1)}")
    except ConfigurationError:
        raise ValueError("expected a name or an address, without a port") from None


@dataclass(frozen=True, kw_only=True)
class BrokerSettings(CommonSettings):
    """One broker: where it listens, how patient it is, and how much it holds."""

    role: ClassVar[str] = "broker"

    clients: str = setting(DEFAULT_CLIENTS, metavar="ENDPOINT", help="Where clients connect; port 0 picks a free one.")
    workers: str = setting(DEFAULT_WORKERS, metavar="ENDPOINT", help="Where workers connect; port 0 picks a free one.")
    broker_id: str | None = setting(None, check=check_name, help="Name of this broker; else the host's.")
    peers: tuple[str, ...] = setting(
        (), metavar="ENDPOINT[,ENDPOINT]", help="Client endpoints of the other brokers, told to clients for fail-over."
    )

    request_timeout_s: float = setting(
        30.0, env=("REQUEST_TIMEOUT_SEC",), minimum=0.1, help="Time for an answer; twice that, outcomes are kept."
    )
    node_eviction_timeout_s: float = setting(
        10.0, env=("NODE_EVICTION_TIMEOUT_SEC",), minimum=0.1, help="Silence after which a node's work goes elsewhere."
    )
    heartbeat_interval_s: float = setting(
        5.0, env=("HEARTBEAT_INTERVAL_SEC",), minimum=0.05, help="Peers give a sign of life twice in this time."
    )
    max_in_flight_requests: int = setting(
        100, env=("MAX_IN_FLIGHT_REQUESTS",), minimum=1, help="Waiting requests per active node of a service; then 429."
    )
    max_queued_requests: int = setting(
        limits.QUEUE_REQUESTS, minimum=1, help="Waiting requests per service, however many nodes serve it."
    )
    max_retries: int = setting(
        limits.MAX_ATTEMPTS - 1,
        env=("MAX_RETRIES",),
        minimum=0,
        help="Further nodes a request is given to after losses.",
    )
    max_priority: int = setting(
        0,
        minimum=-100,
        maximum=100,
        help="Highest priority of clients without the mark admin; a higher one is lowered to it.",
    )
    max_outstanding: int = setting(
        4096, minimum=1, help="Unanswered requests of one client connection; the client library waits beyond it."
    )
    window_bytes: int = setting(
        limits.WINDOW_BYTES, minimum=1 << 16, help="Bytes sent to a client that it has not read yet."
    )
    max_held_bytes: int = setting(
        limits.MAX_HELD_BYTES, minimum=1 << 20, help="Memory for requests, journals and outcomes together; then 429."
    )
    metrics_port: int | None = setting(
        None, minimum=0, maximum=65535, help="Serve /metrics on 127.0.0.1 at this port; 0 picks a free one."
    )
    print_join: bool = setting(
        False, help="Let other machines join: make keys if there are none, listen for them, print a line for each role."
    )
    advertise: str | None = setting(
        None, metavar="HOST", check=check_host, help="Name or address of this machine in those lines; else guessed."
    )
    io_threads: int = setting(2, minimum=1, maximum=16, help="Threads of libzmq; 4 pay off with keys and many peers.")

    def __post_init__(self) -> None:
        """Refuse times that contradict each other."""
        if self.node_eviction_timeout_s <= self.heartbeat_interval_s:
            raise ValueError(
                "node_eviction_timeout: must be above the heartbeat interval, or healthy nodes are evicted"
            )

        if len(self.peers) > limits.MAX_BROKERS or any(len(peer) > limits.MAX_ENDPOINT_CHARS for peer in self.peers):
            most = f"{limits.MAX_BROKERS} endpoints of {limits.MAX_ENDPOINT_CHARS} characters"
            raise ValueError(f"peers: {most} are the most that clients are told")

    @property
    def name(self) -> str:
        """Its name in status and logs."""
        return (self.broker_id or socket.gethostname() or "broker")[: limits.MAX_NAME_CHARS]

    @property
    def timing(self) -> Timing:
        """All timers that follow."""
        return Timing(
            heartbeat_s=self.heartbeat_interval_s,
            eviction_s=self.node_eviction_timeout_s,
            request_timeout_s=self.request_timeout_s,
        )

    @property
    def bounds(self) -> Bounds:
        """All bounds that follow."""
        return Bounds(
            in_flight=self.max_in_flight_requests,
            queue_requests=self.max_queued_requests,
            held_bytes=self.max_held_bytes,
            outstanding=self.max_outstanding,
            window_bytes=self.window_bytes,
            attempts=self.max_retries + 1,
            priority=self.max_priority,
            brokers=self.peers,
        )
