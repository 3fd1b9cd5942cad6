"""Nodes of a broker that offer one service, without the broker."""

from __future__ import annotations

from zmqrt.broker.nodes import Node, Offer
from zmqrt.broker.services import Service
from zmqrt.broker.sessions import bucket
from zmqrt.protocol import messages as m


def make_node(service: Service, capacity: int = 10) -> Node:
    """Make a node that is ready, with one offer."""
    told = m.ServiceOffer(service.name, 1000, "generate")
    ready = m.Ready(b"u" * 16, "n", capacity, [told], [])
    node = Node(b"p", "", ready, 1, 0.0, 0.0, 1.0, bucket(1.0, 1.0, 0.0), capacity=capacity, limit=10**6)
    node.is_usable = True
    node.offers[service.name] = Offer(node, service, told, 1000)
    return node
