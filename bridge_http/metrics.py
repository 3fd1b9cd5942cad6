"""Counts what this bridge has served, and answers GET /metrics with that and with how the fleet is.

The first is counted here, for each request as it goes by, and may be added up over several bridges. The second is the
broker's last snapshot (`protocol/prometheus.py`), translated when somebody scrapes: every bridge tells the same, so it
is not to be added up. docs/metrics.md lists all names.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from ..client.response import Result
from ..protocol.api_keys import ApiKey
from ..protocol.prometheus import FleetCollector
from .key_ring import KeyRing
from .snapshot_cache import SnapshotCache
from .tenant_metrics import OwnSeries, TenantMetrics

REFUSED: Final = Counter(
    "zmqrt_http_refused", "Requests and connections refused before any path was looked at.", ["status"], registry=None
)
"""Of the process: connections know no app."""
MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What this bridge counts, in a registry of its own."""

    def __init__(self, snapshots: SnapshotCache, ring: KeyRing) -> None:
        self._snapshots = snapshots
        self.registry = CollectorRegistry()
        own = self.registry
        path = ["path", "method"]
        self._requests = Counter("zmqrt_http_requests", "Answers by status.", [*path, "status"], registry=own)
        self._duration = Histogram(
            "zmqrt_http_request_duration_seconds", "From head to end.", path, buckets=_SECONDS, registry=own
        )
        self.in_flight = 0
        under_way = Gauge("zmqrt_http_requests_in_flight", "Requests without an end.", registry=own)
        under_way.set_function(lambda: self.in_flight)
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._first = Histogram(
            "zmqrt_http_time_to_first_token_seconds",
            "From asking the fleet to the first token, of streams.",
            ["model"],
            buckets=_SECONDS,
            registry=own,
        )
        self._left = Counter("zmqrt_http_callers_left", "Callers who left before the end.", ["stage"], registry=own)
        for stage in ("waiting", "streaming"):
            self._left.labels(stage)  # a series exists once it is named, and alerts want it from the start
        old_keys = Gauge(
            "zmqrt_http_keys_file_broken", "1: the file of API keys cannot be read, and older keys count.", registry=own
        )
        old_keys.set_function(lambda: float(bool(ring.problem)))
        own.register(REFUSED)
        own.register(FleetCollector(lambda: snapshots.latest))

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count an answer; `path` is a route, not what the client wrote."""
        series = self._series.get((path, method, status))
        if series is None:  # the library takes longer to find them than to count
            counter, histogram = self._requests.labels(path, method, str(status)), self._duration.labels(path, method)
            series = self._series[path, method, status] = counter, histogram
        series[0].inc()
        series[1].observe(seconds)

    def streamed(self, result: Result, first_s: float) -> None:
        """Count a stream that has its result."""
        self._first.labels(result.model).observe(first_s)

    def left(self, stage: str) -> None:
        """Count a caller who did not wait for the end."""
        self._left.labels(stage).inc()

    def add(self, tenants: TenantMetrics) -> None:
        """Tell what is counted by tenant, too."""
        tenants.register(self.registry)

    async def scrape(self, request: Request) -> Response:
        """Answer GET /metrics; the fleet is asked at most once a second."""
        await self._snapshots.look()
        key: ApiKey | None = request.state.key
        told = self.registry if key is None or key.sees_all_tenants else OwnSeries(self.registry, key.tenant)
        return Response(generate_latest(told), media_type=MEDIA_TYPE)
