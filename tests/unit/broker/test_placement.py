"""The load_index of offers: always the least loaded one, whatever the order of changes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.offers import make_node
from zmqrt.broker.nodes import KV_STEPS
from zmqrt.broker.placement import LOAD_STEPS, LoadIndex, level, reindex
from zmqrt.broker.services import Service
from zmqrt.protocol import messages as m


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, LOAD_STEPS * KV_STEPS - 1)), max_size=60))
def test_the_best_is_always_in_the_lowest_set(moves: list[tuple[int, int]]) -> None:
    """Compared with a plain minimum over all."""
    service = Service("s")
    offers = [make_node(service).offers["s"] for _ in range(6)]
    load_index = service.load_index

    for which, index in moves:
        load_index.put(offers[which], index)
        inside = [offer for offer in offers if offer.index >= 0]
        assert len(load_index) == len(inside)
        assert bool(load_index.mask) == bool(inside)
        if inside:
            assert load_index.best().index == min(offer.index for offer in inside)


@given(st.integers(1, 200), st.integers(0, 250), st.integers(0, KV_STEPS - 1))
def test_the_level_follows_load_first_and_memory_second(capacity: int, running: int, kv_step: int) -> None:
    """A full node has none."""
    node = make_node(Service("s"), capacity)
    node.kv_step = kv_step
    leases: Any = dict.fromkeys(range(running))  # only their number counts
    node.running = leases

    node.most = 150

    if running >= min(capacity, node.most):
        assert level(node) == -1
    else:
        assert level(node) == running * LOAD_STEPS // min(capacity, node.most) * KV_STEPS + kv_step


def test_a_node_that_may_take_nothing_is_taken_out() -> None:
    """Not usable, out of credit: not in the load_index."""
    service = Service("s")
    node = make_node(service)
    reindex(node)
    assert len(service.load_index) == 1

    node.limit = node.dispatched
    reindex(node)
    assert len(service.load_index) == 0
    node.limit, node.is_usable = 10, False
    reindex(node)

    assert len(service.load_index) == 0


def test_what_comes_back_avoids_its_last_node_and_keeps_its_revision() -> None:
    """It takes the last one if there is no other, and none if the weights differ."""
    service = Service("s")
    first, second = make_node(service), make_node(service)
    load_index: LoadIndex = service.load_index
    for node, revision in ((first, "r1"), (second, "r2")):
        node.offers["s"].spec = m.ServiceOffer("s", 10, "generate", revision=revision)
        reindex(node)

    assert load_index.best_for(first, None) is second.offers["s"]
    assert load_index.best_for(first, "r1") is first.offers["s"]
    assert load_index.best_for(None, "r3") is None
