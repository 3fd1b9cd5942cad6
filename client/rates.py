"""Computes how many tokens a second each device makes, from the counters of two heartbeats.

Every heartbeat has the counters and the node's own time, so a rate is exact however late or seldom somebody looks.
"""

from __future__ import annotations

from typing import Final

from ..protocol.snapshot import NodeStatus, Snapshot

MAX_GAP_S: Final = 30.0
"""Heartbeats further apart tell an average over a time that nobody watched, not what goes on now."""
Rates = dict[str, dict[str, float]]
"""Tokens a second by worker_uuid and device id. What is not known (yet) is left out."""


class TokenRates:
    """Folds snapshots as they come; the same heartbeat seen again changes nothing."""

    def __init__(self) -> None:
        self._beats: dict[str, NodeStatus] = {}
        self._rates: Rates = {}

    def fold(self, snapshot: Snapshot) -> Rates:
        """Take in the newest snapshot and return the rates of the nodes that are in touch."""
        in_touch = {node.worker_uuid: node for node in snapshot.nodes if node.health in ("active", "draining")}
        rates: Rates = {}
        for uuid, node in in_touch.items():
            before = self._beats.get(uuid)
            if before is not None and before.elapsed_s == node.elapsed_s:
                rates[uuid] = self._rates.get(uuid, {})
            else:
                rates[uuid] = {} if before is None else between(before, node)
        self._beats, self._rates = in_touch, rates
        return rates


def between(before: NodeStatus, now: NodeStatus) -> dict[str, float]:
    """Return tokens a second of each device that both heartbeats tell about; {} if they are too far apart."""
    passed_s = now.elapsed_s - before.elapsed_s
    if not 0 < passed_s <= MAX_GAP_S:
        return {}
    tokens = {device.id: device.tokens for device in before.devices}
    return {
        device.id: max(0, device.tokens - tokens[device.id]) / passed_s for device in now.devices if device.id in tokens
    }
