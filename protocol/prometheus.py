"""Writes the numbers of a fleet as Prometheus wants them: a snapshot in, metric families out.

Bridge, broker and node all write through this, so a number has one name wherever it is scraped. Labels are models,
nodes and devices as the fleet names them, never what a client chose. docs/metrics.md lists all names. Needs
prometheus-client, which is an extra: only those who serve metrics import this module.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from prometheus_client import disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .histogram import BOUNDS_S, Histogram
from .snapshot import DeviceStatus, NodeStatus, ServiceStatus, Snapshot

_REJECTIONS: Final = {
    "rejected_queue_full": "queue_full",
    "rejected_too_late": "too_late",
    "rejected_memory_full": "memory_full",
    "rejected_no_worker": "no_worker",
    "rejected_not_found": "not_found",
    "rejected_draining": "draining",
    "rejected_bad": "bad_request",
}
_IN_TOUCH: Final = ("active", "suspect", "draining")
"""Of nodes that are gone the last numbers say nothing about now."""
_UUID_CHARS: Final = 8
disable_created: Any = disable_created_metrics
disable_created()  # a second series for each counter, which nobody asks for


class FleetCollector(Collector):
    """Translates the newest snapshot when somebody scrapes. Without one there is `zmqrt_broker_up 0` and no more."""

    def __init__(self, newest: Callable[[], Snapshot | None]) -> None:
        self._newest = newest

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        snapshot = self._newest()
        yield GaugeMetricFamily("zmqrt_broker_up", "Whether the broker answered.", value=float(snapshot is not None))
        if snapshot is not None:
            yield from of_fleet(snapshot)

    def describe(self) -> Iterable[Metric]:
        """Say nothing beforehand: registering must not ask for a snapshot."""
        return ()


def of_fleet(snapshot: Snapshot) -> Iterable[Metric]:
    """Yield everything that a broker knows."""
    nodes = _by_name(snapshot.nodes)
    yield from _of_services(snapshot.services)
    yield from of_nodes(nodes)
    yield from of_devices([node for node in nodes if node.health in _IN_TOUCH])
    yield from _of_counters(snapshot.counters)
    yield from _of_tallies(snapshot.tallies)


def _by_name(nodes: list[NodeStatus]) -> list[NodeStatus]:
    """Give every node a name of its own: a series that comes twice would make Prometheus refuse the whole page.

    A node that was started again is listed twice for a while; only the one that is there counts. Several that are there
    under one name are told apart by the beginning of their uuid.
    """
    there: dict[str, list[NodeStatus]] = {}
    for node in nodes:
        if node.health in _IN_TOUCH:
            there.setdefault(node.node_id, []).append(node)
    gone = {node.node_id: node for node in nodes if node.node_id not in there}
    named = [_apart(node) if len(same) > 1 else node for same in there.values() for node in same]
    return [*named, *gone.values()]


def _apart(node: NodeStatus) -> NodeStatus:
    return msgspec.structs.replace(node, node_id=f"{node.node_id}@{node.worker_uuid[:_UUID_CHARS]}")


# --- models ----------------------------------------------------------------------------------------------------------

_SERVICE_GAUGES: Final = {
    "num_requests_running": ("running", "Requests at nodes."),
    "num_requests_waiting": ("queued", "Requests in the queue."),
    "model_nodes": ("nodes", "Nodes that could serve it now."),
}
_SERVICE_COUNTERS: Final = {
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts answered."),
    "generation_tokens": ("generated_tokens", "Tokens of answers."),
}
_SERVICE_HISTOGRAMS: Final = {
    "request_queue_time_seconds": ("queue_time", "From coming in to the first dispatch, of those answered."),
    "time_to_first_token_seconds": ("first_token", "From coming in to the first token."),
    "inter_token_latency_seconds": ("token_time", "A further token, the mean of one answer."),
    "e2e_request_latency_seconds": ("duration", "From coming in to the result."),
}


def _of_services(services: list[ServiceStatus]) -> Iterable[Metric]:
    found = [([service.service], service) for service in services]
    yield from _families(GaugeMetricFamily, _SERVICE_GAUGES, ["model"], found)
    yield from _families(CounterMetricFamily, _SERVICE_COUNTERS, ["model"], found)
    yield from _families(HistogramMetricFamily, _SERVICE_HISTOGRAMS, ["model"], found)
    finished = CounterMetricFamily("zmqrt_request_success", "Requests answered.", labels=["model", "finish_reason"])
    for service in services:
        for reason, count in service.finished.items():
            finished.add_metric([service.service, reason or "none"], count)
    yield finished


def _families(
    kind: Any,  # noqa: ANN401 - the three kinds have no base that says how they are filled
    table: Mapping[str, tuple[str, str]],
    labels: list[str],
    found: Sequence[tuple[list[str], object]],
) -> Iterable[Metric]:
    """Yield a family for each metric of a table, with a sample for each record: (its labels, the record)."""
    for name, (field, text) in table.items():
        family = kind(f"zmqrt_{name}", text, labels=labels)
        for place, record in found:
            value: Histogram | float | None = getattr(record, field)
            if isinstance(value, Histogram):
                _add_histogram(family, place, value)
            elif value is not None:
                family.add_metric(place, value)
        yield family


def _add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    cumulative = list(itertools.accumulate(histogram.counts))
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    if len(cumulative) == len(bounds):  # else of a release with other bounds
        family.add_metric(labels, list(zip(bounds, cumulative, strict=True)), histogram.total_s)


# --- nodes and devices -----------------------------------------------------------------------------------------------

_NODE_GAUGES: Final = {
    "worker_up": ("is_up", "Whether a node is active and has loaded."),
    "worker_heartbeat_age_seconds": ("heartbeat_age_s", "Since it was last heard."),
    "worker_requests_in_flight": ("in_flight", "Requests it was given."),
    "worker_capacity": ("capacity", "Requests it takes at once."),
}
_DEVICE_GAUGES: Final = {
    "batch_size": ("running", "Sequences in the engine."),
    "engine_waiting": ("waiting", "Requests that wait in the engine."),
    "kv_cache_usage_percent": ("kv_percent", "Share of the memory for keys and values in use."),
    "engine_loop_age_seconds": ("loop_age_s", "Since the engine's loop last turned."),
    "device_on_fallback": ("is_on_fallback", "Whether its engine does without something that failed."),
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
    "tokens_after_cancel": ("tokens_after_cancel", "Tokens drawn for requests that were cancelled already."),
}
_DEVICE_HISTOGRAMS: Final = {
    "cancel_latency_seconds": ("cancel_latency", "From a cancel at the node to the freed slot."),
}


def of_nodes(nodes: list[NodeStatus]) -> Iterable[Metric]:
    """Yield what is known of nodes as a whole."""
    return _families(GaugeMetricFamily, _NODE_GAUGES, ["node"], [([node.node_id], node) for node in nodes])


def of_devices(nodes: list[NodeStatus]) -> Iterable[Metric]:
    """Yield what is known of their devices."""
    labels, found = ["node", "device"], list(_devices(nodes))
    yield from _families(GaugeMetricFamily, _DEVICE_GAUGES, labels, found)
    yield from _families(CounterMetricFamily, _DEVICE_COUNTERS, labels, found)
    yield from _families(HistogramMetricFamily, _DEVICE_HISTOGRAMS, labels, found)


def _devices(nodes: list[NodeStatus]) -> Iterable[tuple[list[str], DeviceStatus]]:
    """Yield each device under a name of its own: of several with one name the later ones are numbered."""
    for node in nodes:
        seen: Counter[str] = Counter()
        for device in node.devices:
            seen[device.id] += 1
            name = f"{device.id}#{seen[device.id]}" if seen[device.id] > 1 else device.id
            yield [node.node_id, name], device


# --- the broker ------------------------------------------------------------------------------------------------------


def _of_counters(counters: Mapping[str, int]) -> Iterable[Metric]:
    rejections = CounterMetricFamily("zmqrt_rejections", "Requests not taken in.", labels=["reason"])
    for name, reason in _REJECTIONS.items():
        rejections.add_metric([reason], counters.get(name, 0))
    yield rejections
    for name, field, text in (
        ("broker_requests", "requests", "Requests that came in."),
        ("broker_completed", "completed", "Requests that were answered."),
        ("broker_expired", "expired", "Requests whose time was up."),
        ("resumes", "resumes", "Requests given out with what they had made before."),
        ("slow_readers", "slow_readers", "Streams given up because they were read too slowly."),
        ("nodes_lost", "nodes_lost", "Nodes whose connection broke."),
        ("nodes_suspected", "nodes_suspected", "Nodes that fell silent for a heartbeat, or stood still."),
        ("nodes_evicted", "nodes_evicted", "Nodes that were silent for too long."),
        ("internal_errors", "internal_errors", "Faults of the broker itself; please report them."),
    ):
        yield CounterMetricFamily(f"zmqrt_{name}", text, value=counters.get(field, 0))


def _of_tallies(tallies: Mapping[str, Mapping[str, int]]) -> Iterable[Metric]:
    for name, field, label, text in (
        ("redispatches", "redispatches", "reason", "Requests given to another node after a loss."),
        ("cancellations", "cancellations", "stage", "Requests that nobody waited for any more."),
        ("zap_refused", "zap_refused", "reason", "Connections that were not let in."),
        ("request_failures", "failures", "reason", "Requests that ended in an error."),
    ):
        family = CounterMetricFamily(f"zmqrt_{name}", text, labels=[label])
        for value, count in tallies.get(field, {}).items():
            family.add_metric([value], count)
        yield family
