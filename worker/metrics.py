"""Metrics of a node: what its brokers know of it, for machines that are scraped one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..protocol.prometheus import of_devices, of_nodes
from ..protocol.snapshot import NodeHealth, NodeStatus, device_status
from .core import WorkerCore, WorkerState

_HEALTH: Final[Mapping[WorkerState, NodeHealth]] = {
    WorkerState.JOINING: "active",
    WorkerState.READY: "active",
    WorkerState.DRAINING: "draining",
    WorkerState.GONE: "lost",
}


class NodeCollector(Collector):
    """Translates the state of the node when somebody scrapes; nothing while its loop is too busy to answer."""

    def __init__(self, ask: Callable[[], tuple[NodeStatus, int] | None]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        described = self._ask()
        if described is None:
            return
        node, brokers = described
        yield from of_nodes([node])
        yield from of_devices([node])
        connected = GaugeMetricFamily("zmqrt_worker_brokers", "Brokers it is registered with.", labels=["node"])
        connected.add_metric([node.node_id], brokers)
        yield connected

    def describe(self) -> Iterable[Metric]:
        """Say nothing beforehand: registering must not ask."""
        return ()


def describe_node(core: WorkerCore, node_id: str, now: float) -> tuple[NodeStatus, int]:
    """Describe a node as its brokers would, and say with how many it is registered."""
    foremost, running = core.pool.foremost(), len(core.requests.jobs)
    capacity = core.pool.capacity()
    status = NodeStatus(
        node_id=node_id,
        worker_uuid="",
        health=_HEALTH[core.state],
        phase=foremost.phase,
        percent=int(foremost.percent),
        elapsed_s=foremost.elapsed_s,
        heartbeat_age_s=0.0,
        capacity=capacity,
        in_flight=running,
        load=running / (capacity or 1),
        completed=0,
        failed=0,
        services=[offer.service for offer in core.pool.offers()],
        devices=[device_status(device.report(now), device.info) for device in core.pool.devices.values()],
    )
    return status, sum(session.is_active for session in core.sessions)
