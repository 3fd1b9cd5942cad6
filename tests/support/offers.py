"""Nodes of a broker that offer one service, without the broker."""

from __future__ import annotations

from zmqrt.broker.nodes import Node, Offer
from zmqrt.broker.rate_limits import full_bucket
from zmqrt.broker.requests import Request
from zmqrt.broker.services import Service
from zmqrt.protocol import messages as m


def make_node(service: Service[Request], capacity: int = 10) -> Node:
    """Make a node that is ready, with one offer."""
    spec = m.ServiceOffer(service.name, 1000, "generate")
    ready = m.Ready(b"u" * 16, "n", capacity, [spec], [])
    node = Node(b"p", "", ready, 1, 0.0, 0.0, 1.0, full_bucket(1.0, 1.0, 0.0), capacity=capacity, limit=10**6)
    node.is_usable = True
    node.offers[service.name] = Offer(node, spec)
    return node
