"""Counts what each tenant has had, for /metrics. Tenants come from the file of keys, and only so many get a series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.registry import Collector

from .ledger import Limit, Settlement

MOST_TENANTS: Final = 200
"""With series of their own; all others are one, for a scrape has to stay readable."""
_OTHERS: Final = "other"


class OwnSeries(Collector):
    """What a registry holds, but for the series of other tenants: who else asks here, and how much, is not everybody's
    to know.
    """

    def __init__(self, registry: CollectorRegistry, tenant: str) -> None:
        self._registry = registry
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        """Yield what a scrape may tell."""
        for metric in self._registry.collect():
            own = [sample for sample in metric.samples if sample.labels.get("tenant", self._tenant) == self._tenant]
            told = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            told.samples = own
            yield told


class TenantMetrics:
    """What is counted by tenant, and whether it can be written down."""

    def __init__(self, problem: Callable[[], str]) -> None:
        self._tenants: set[str] = set()
        whose = ["tenant"]
        self._requests = Counter(
            "zmqrt_tenant_requests", "Requests that ended, metered.", [*whose, "outcome"], registry=None
        )
        self._tokens = Counter("zmqrt_tenant_tokens", "Tokens of them.", [*whose, "kind"], registry=None)
        self._refused = Counter("zmqrt_tenant_refused", "Requests over a limit.", [*whose, "limit"], registry=None)
        self._unrecorded = Counter("zmqrt_usage_unrecorded", "Requests that could not be written down.", registry=None)
        self._broken = Gauge("zmqrt_usage_broken", "1: the usage file cannot be written.", registry=None)
        self._broken.set_function(lambda: float(bool(problem())))

    def register(self, registry: CollectorRegistry) -> None:
        """Have all of them told."""
        for metric in (self._requests, self._tokens, self._refused, self._unrecorded, self._broken):
            registry.register(metric)

    def settled(self, ended: Settlement) -> None:
        """Count a request that has ended."""
        tenant = self._label(ended.reservation.tenant)
        self._requests.labels(tenant, "failed" if ended.has_failed else "answered").inc(ended.reservation.requests)
        self._tokens.labels(tenant, "prompt").inc(ended.prompt_tokens)
        self._tokens.labels(tenant, "completion").inc(ended.completion_tokens)

    def refused(self, tenant: str, limit: Limit) -> None:
        """Count a refusal."""
        self._refused.labels(self._label(tenant), limit).inc()

    def unrecorded(self) -> None:
        """Count a request that the usage file does not know."""
        self._unrecorded.inc()

    def _label(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= MOST_TENANTS:
                return _OTHERS
            self._tenants.add(tenant)
        return tenant
