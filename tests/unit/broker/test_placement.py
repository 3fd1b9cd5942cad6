"""The index of offers by load: always the least loaded one, whatever the order of changes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.offers import make_node
from zmqrt.broker.bounds import Bounds
from zmqrt.broker.leases import reindex
from zmqrt.broker.nodes import KV_STEPS, Demand, Node
from zmqrt.broker.placement import LOAD_STEPS, LoadIndex, load_level
from zmqrt.broker.requests import Request
from zmqrt.broker.services import Service
from zmqrt.broker.state import BrokerState
from zmqrt.protocol import messages as m
from zmqrt.protocol.capabilities import NOTHING
from zmqrt.protocol.timing import Timing


def index_anew(service: Service[Request], node: Node) -> None:
    """Do what a broker does after a node has changed."""
    state = BrokerState(Timing(), Bounds(), int, "b", 1, 0.0, 0.0, lambda _: True, lambda _: True)
    state.services[service.name] = service
    state.touched[node] = None
    reindex(state)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, LOAD_STEPS * KV_STEPS - 1)), max_size=60))
def test_the_best_is_always_in_the_lowest_set(moves: list[tuple[int, int]]) -> None:
    """Compared with a plain minimum over all."""
    service: Service[Request] = Service("s")
    offers = [make_node(service).offers["s"] for _ in range(6)]
    load_index = service.load_index

    for which, level in moves:
        load_index.put(offers[which], level)
        inside = [offer for offer in offers if offer.level >= 0]
        assert len(load_index) == len(inside)
        assert bool(load_index.mask) == bool(inside)
        if inside:
            assert load_index.best().level == min(offer.level for offer in inside)


@given(st.integers(1, 200), st.integers(0, 250), st.integers(0, KV_STEPS - 1))
def test_the_level_follows_load_first_and_memory_second(capacity: int, running: int, kv_step: int) -> None:
    """A full node has none."""
    node = make_node(Service("s"), capacity)
    node.kv_step = kv_step
    leases: Any = dict.fromkeys(range(running))  # only their number counts
    node.running = leases

    node.most = 150

    if running >= min(capacity, node.most):
        assert load_level(node) == -1
    else:
        assert load_level(node) == running * LOAD_STEPS // min(capacity, node.most) * KV_STEPS + kv_step


def test_a_node_that_may_take_nothing_is_taken_out() -> None:
    """Not usable, out of credit: not in the index."""
    service: Service[Request] = Service("s")
    node = make_node(service)
    index_anew(service, node)
    assert len(service.load_index) == 1

    node.limit = node.dispatched
    index_anew(service, node)
    assert len(service.load_index) == 0
    node.limit, node.is_usable = 10, False
    index_anew(service, node)

    assert len(service.load_index) == 0


def test_what_comes_back_avoids_its_last_node_and_keeps_its_revision() -> None:
    """It takes the last one if there is no other, and none if the weights differ."""
    service: Service[Request] = Service("s")
    first, second = make_node(service), make_node(service)
    load_index: LoadIndex = service.load_index
    for node, revision in ((first, "r1"), (second, "r2")):
        node.offers["s"].renew(m.ServiceOffer("s", 10, "generate", revision=revision))
        index_anew(service, node)

    assert load_index.best_for(first, Demand(None, NOTHING)) is second.offers["s"]
    assert load_index.best_for(first, Demand("r1", NOTHING)) is first.offers["s"]
    assert load_index.best_for(None, Demand("r3", NOTHING)) is None
