"""From a snapshot to the text that Prometheus reads."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from support.snapshots import DEVICE, node, service, snapshot
from zmqrt.protocol.histogram import BOUNDS_S, Histogram
from zmqrt.protocol.prometheus import FleetCollector
from zmqrt.protocol.snapshot import Snapshot


def families(newest: Snapshot | None) -> dict[str, Metric]:
    """Write as a scrape does, and read it back."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(lambda: newest))
    return {one.name: one for one in text_string_to_metric_families(generate_latest(registry).decode())}


def test_a_histogram_is_cumulative_and_ends_at_infinity() -> None:
    """As the format wants it; here and in quantile() the same bounds."""
    took = Histogram()
    for seconds in (0.001, 0.0015, 1000.0):
        took.add(seconds)
    told = families(snapshot(services=[service("m", duration=took)]))["zmqrt_e2e_request_latency_seconds"]
    buckets = [one for one in told.samples if one.name.endswith("_bucket")]

    assert len(buckets) == len(BOUNDS_S) + 1
    assert [buckets[0].value, buckets[1].value, buckets[-2].value, buckets[-1].value] == [1, 2, 2, 3]
    assert buckets[-1].labels == {"model": "m", "le": "+Inf"}
    assert [one.value for one in told.samples if one.name.endswith(("_sum", "_count"))] == [3, 1000.0025]


def test_a_node_that_is_gone_tells_nothing_of_its_devices() -> None:
    """Its last numbers say nothing about now; that it is gone is told."""
    told = families(snapshot(node("a"), node("b", health="evicted")))

    assert {one.labels["node"]: one.value for one in told["zmqrt_worker_up"].samples} == {"a": 1, "b": 0}
    assert {one.labels["node"] for one in told["zmqrt_batch_size"].samples} == {"a"}


def test_without_a_snapshot_there_is_one_number() -> None:
    """No stale ones."""
    assert list(families(None)) == ["zmqrt_broker_up"]


def test_a_device_that_does_without_something_is_seen() -> None:
    """An alert needs a number; the words are in the status."""
    slow = msgspec.structs.replace(DEVICE, id="cuda:0", fallback="kernels off")
    told = families(snapshot(node("a", devices=[slow, msgspec.structs.replace(DEVICE, id="cuda:1")])))

    values = {one.labels["device"]: one.value for one in told["zmqrt_device_on_fallback"].samples}
    assert values == {"cuda:0": 1, "cuda:1": 0}
