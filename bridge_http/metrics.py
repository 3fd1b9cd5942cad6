"""GET /metrics: what this bridge has served, and how the fleet is.

The first is counted here, for each request as it goes by, and may be added up over several bridges. The second is the
broker's last snapshot, translated when somebody scrapes: every bridge tells the same, so it is not to be added up.
Labels are models and nodes as the fleet names them, never what a client chose. docs/metrics.md lists all names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ..client.results import Result
from ..protocol.snapshot import DeviceStatus, NodeStatus, Snapshot
from .health import Watch

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REJECTIONS: Final = {
    "rejected_queue_full": "queue_full",
    "rejected_memory_full": "memory_full",
    "rejected_no_worker": "no_worker",
    "rejected_not_found": "not_found",
    "rejected_draining": "draining",
    "rejected_bad": "bad_request",
}

_IN_TOUCH: Final = ("active", "suspect", "draining")
"""Of nodes that are gone the last numbers say nothing about now."""
disable_created: Any = disable_created_metrics
disable_created()  # a second series for each counter, which nobody asks for


class Metrics:
    """What this bridge counts, in a registry of its own."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.registry = CollectorRegistry()
        own = self.registry
        path = ["path", "method"]
        self._requests = Counter("zmqrt_http_requests", "Answers by status.", [*path, "status"], registry=own)
        self._duration = Histogram(
            "zmqrt_http_request_duration_seconds", "From head to end.", path, buckets=_SECONDS, registry=own
        )
        self.in_flight = Gauge("zmqrt_http_requests_in_flight", "Requests without an end.", registry=own)
        model = ["model"]
        self._latency = Histogram(
            "zmqrt_e2e_request_latency_seconds", "From asking to the result.", model, buckets=_SECONDS, registry=own
        )
        self._first = Histogram(
            "zmqrt_time_to_first_token_seconds",
            "From asking to the first token.",
            model,
            buckets=_SECONDS,
            registry=own,
        )
        self._token = Histogram(
            "zmqrt_inter_token_latency_seconds", "A token, on average.", model, buckets=_TOKEN_SECONDS, registry=own
        )
        self._prompt = Counter("zmqrt_prompt_tokens", "Tokens of prompts answered.", model, registry=own)
        self._generated = Counter("zmqrt_generation_tokens", "Tokens of answers.", model, registry=own)
        self._success = Counter(
            "zmqrt_request_success", "Generations that ended well.", [*model, "finish_reason"], registry=own
        )
        self._left = Counter("zmqrt_http_callers_left", "Callers who left before the end.", ["stage"], registry=own)
        for stage in ("waiting", "streaming"):
            self._left.labels(stage)  # a series exists once it is named, and alerts want it from the start
        own.register(_FleetCollector(watch))

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count an answer; `path` is a route, not what the client wrote."""
        self._requests.labels(path, method, str(status)).inc()
        self._duration.labels(path, method).observe(seconds)

    def generated(self, result: Result, seconds: float, first_s: float | None) -> None:
        """Count a generation that has its result. `first_s`: time to the first token, of a stream."""
        model = result.model
        self._latency.labels(model).observe(seconds)
        self._prompt.labels(model).inc(result.usage.prompt_tokens)
        self._generated.labels(model).inc(result.usage.completion_tokens)
        self._success.labels(model, result.finish_reason).inc()
        if first_s is not None:
            self._first.labels(model).observe(first_s)
            if result.usage.completion_tokens > 1:
                self._token.labels(model).observe((seconds - first_s) / (result.usage.completion_tokens - 1))

    def left(self, stage: str) -> None:
        """Count a caller who did not wait for the end."""
        self._left.labels(stage).inc()

    async def scrape(self, _request: Request) -> Response:
        """Answer GET /metrics; the fleet is asked at most once a second."""
        await self._watch.health()
        return Response(generate_latest(self.registry), media_type=MEDIA_TYPE)


class _FleetCollector(Collector):
    """Translates the newest snapshot. Without one there is nothing but `zmqrt_broker_up 0`: no stale numbers."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        snapshot = self._watch.latest
        yield GaugeMetricFamily("zmqrt_broker_up", "Whether the broker answered.", value=float(snapshot is not None))
        if snapshot is not None:
            yield from _of_services(snapshot)
            nodes = _by_name(snapshot.nodes)
            yield from _of_nodes(nodes)
            yield from _of_devices([node for node in nodes if node.health in _IN_TOUCH])
            yield from _of_counters(snapshot.counters)

    def describe(self) -> Iterable[Metric]:
        """Say nothing beforehand: registering must not ask for a snapshot."""
        return ()


def _by_name(nodes: list[NodeStatus]) -> list[NodeStatus]:
    """Keep one node of a name, the liveliest: one that was started again is listed twice for a while.

    A series that comes twice would make Prometheus refuse the whole page.
    """
    order = ("evicted", "lost", "suspect", "draining", "active")
    ranked = sorted(nodes, key=lambda node: order.index(node.health))
    return list({node.node_id: node for node in ranked}.values())


def _of_services(snapshot: Snapshot) -> Iterable[Metric]:
    running = GaugeMetricFamily("zmqrt_num_requests_running", "Requests at nodes.", labels=["model"])
    waiting = GaugeMetricFamily("zmqrt_num_requests_waiting", "Requests in the queue.", labels=["model"])
    nodes = GaugeMetricFamily("zmqrt_model_nodes", "Nodes that could serve it now.", labels=["model"])
    for service in snapshot.services:
        running.add_metric([service.service], service.running)
        waiting.add_metric([service.service], service.queued)
        nodes.add_metric([service.service], service.nodes)
    return running, waiting, nodes


def _of_nodes(found: list[NodeStatus]) -> Iterable[Metric]:
    node = ["node"]
    up = GaugeMetricFamily("zmqrt_worker_up", "Whether a node is active and has loaded.", labels=node)
    age = GaugeMetricFamily("zmqrt_worker_heartbeat_age_seconds", "Since it was last heard.", labels=node)
    in_flight = GaugeMetricFamily("zmqrt_worker_requests_in_flight", "Requests it was given.", labels=node)
    capacity = GaugeMetricFamily("zmqrt_worker_capacity", "Requests it takes at once.", labels=node)
    for one in found:
        name = [one.node_id]
        up.add_metric(name, float(one.health == "active" and one.phase == "ready"))
        age.add_metric(name, one.heartbeat_age_s)
        in_flight.add_metric(name, one.in_flight)
        capacity.add_metric(name, one.capacity)
    return up, age, in_flight, capacity


_DEVICE_GAUGES: Final = {
    "batch_size": ("running", "Sequences in the engine."),
    "engine_waiting": ("waiting", "Requests that wait in the engine."),
    "kv_cache_usage_percent": ("kv_percent", "Share of the memory for keys and values in use."),
    "engine_loop_age_seconds": ("loop_age_s", "Since the engine's loop last turned."),
    "device_memory_used_bytes": ("memory_used_bytes", "Memory in use, as the driver tells."),
    "device_busy_percent": ("busy_percent", "Share of the last moment in which it computed, as the driver tells."),
    "device_celsius": ("celsius", "Temperature, as the driver tells."),
}
_DEVICE_COUNTERS: Final = {
    "engine_steps": ("steps", "Steps computed."),
    "engine_tokens": ("tokens", "Tokens drawn."),
    "engine_restarts": ("restarts", "Engine processes that ended and were started again."),
    "engine_prompt_tokens": ("prompt_tokens", "Tokens of prompts computed."),
    "engine_prefix_tokens_reused": ("reused_tokens", "Tokens of prompts that were found in the pool."),
}


def _of_devices(nodes: list[NodeStatus]) -> Iterable[Metric]:
    labels = ["node", "device"]
    for name, (field, text) in _DEVICE_GAUGES.items():
        gauge = GaugeMetricFamily(f"zmqrt_{name}", text, labels=labels)
        for place, value in _values(nodes, field):
            gauge.add_metric(place, value)
        yield gauge
    for name, (field, text) in _DEVICE_COUNTERS.items():
        counter = CounterMetricFamily(f"zmqrt_{name}", text, labels=labels)
        for place, value in _values(nodes, field):
            counter.add_metric(place, value)
        yield counter


def _values(nodes: list[NodeStatus], field: str) -> Iterable[tuple[list[str], float]]:
    for node in nodes:
        for device in node.devices:
            value: float | None = getattr(device, field)
            if value is not None:
                yield [node.node_id, device.id], value


def _of_counters(counters: Mapping[str, int]) -> Iterable[Metric]:
    rejections = CounterMetricFamily("zmqrt_rejections", "Requests not taken in, by reason.", labels=["reason"])
    for name, reason in _REJECTIONS.items():
        rejections.add_metric([reason], counters.get(name, 0))
    yield rejections
    for name, field, text in (
        ("broker_requests", "requests", "Requests that came in."),
        ("broker_completed", "completed", "Requests that were answered."),
        ("broker_failed", "failed", "Requests that ended in an error."),
        ("broker_expired", "expired", "Requests whose time was up."),
        ("cancellations", "cancelled", "Requests that nobody waited for any more."),
        ("redispatches", "redispatches", "Requests given to another node after a loss."),
        ("resumes", "resumes", "Requests given out with what they had made before."),
        ("nodes_lost", "nodes_lost", "Nodes whose connection broke."),
        ("nodes_evicted", "nodes_evicted", "Nodes that were silent for too long."),
    ):
        yield CounterMetricFamily(f"zmqrt_{name}", text, value=counters.get(field, 0))


_FIELDS: Final = {field for field, _ in (*_DEVICE_GAUGES.values(), *_DEVICE_COUNTERS.values())}
assert set(DeviceStatus.__struct_fields__) >= _FIELDS, "a field of DeviceStatus has another name now"
