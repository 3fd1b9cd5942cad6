"""Nodes that take no work and tell as much about themselves as real ones do: what a monitor has to be told of.

python bench/idle_nodes.py worker ENDPOINT [NODES] [DEVICES]
"""

from __future__ import annotations

import itertools
import sys
import time

from rounds import say
from zrt_peers import SERVICE, Peer

from zmqrt.protocol import codec
from zmqrt.protocol import messages as m

NODES = 16
DEVICES = 8
_BEAT_S = 2.5
"""As often as nodes speak by default."""


def news(device: str, count: int) -> m.DeviceLoad:
    """Tell how a device is at the heartbeat of that number: every figure has changed since the last one."""
    return m.DeviceLoad(
        device,
        "ready",
        100,
        capacity=64,
        kv_percent=count % 100,
        steps=count * 100,
        tokens=count * 3000,
        prompt_tokens=count * 500,
        memory_used_bytes=(40 << 30) + count,
        busy_percent=count % 100,
        celsius=60 + count % 10,
    )


class Node:
    """One node: registered, ready, without credit."""

    def __init__(self, endpoint: str, number: int, devices: int) -> None:
        self._peer = Peer(endpoint)
        self._devices = [f"cuda:{index}" for index in range(devices)]
        infos = [m.DeviceInfo(name, "cuda", "Example GPU", 80 << 30) for name in self._devices]
        offer = m.ServiceOffer(SERVICE, 0, "generate")
        self._peer.say([m.Ready(b"idle" + number.to_bytes(12, "big"), f"idle-{number:02}", 64, [offer], infos)])
        heard = self._peer.hear(codec.TO_WORKER, 5_000)
        self._epoch = next(one.epoch for one in heard if isinstance(one, m.WorkerWelcome))

    def beat(self, count: int) -> None:
        """Tell how the devices are; every number has changed since the last time."""
        self._peer.hear(codec.TO_WORKER, 0)
        loads = [news(name, count) for name in self._devices]
        self._peer.say([m.Heartbeat(self._epoch, count, 0, 0, "ready", elapsed_ms=count * 2500, devices=loads)])


def main(endpoint: str, nodes: int = NODES, devices: int = DEVICES) -> None:
    """Beat for ever, the nodes spread over the interval."""
    here = [Node(endpoint, number, devices) for number in range(nodes)]
    say("ready")
    for count in itertools.count(1):
        for node in here:
            node.beat(count)
            time.sleep(_BEAT_S / nodes)


if __name__ == "__main__":
    main(sys.argv[2], *map(int, sys.argv[3:]))
