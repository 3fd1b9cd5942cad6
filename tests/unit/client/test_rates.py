"""Tokens a second from the counters of two heartbeats."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from support.snapshots import EMPTY, node
from zmqrt.client.rates import MAX_GAP_S, TokenRates
from zmqrt.protocol.snapshot import NodeStatus, Snapshot


def fleet(*nodes: NodeStatus) -> Snapshot:
    """Return a snapshot of these nodes."""
    return msgspec.structs.replace(EMPTY, nodes=list(nodes))


def test_a_rate_is_tokens_over_the_nodes_own_time() -> None:
    """However late anybody looked."""
    pace = TokenRates()
    pace.fold(fleet(node("a", elapsed_s=10.0, tokens=100)))

    assert pace.fold(fleet(node("a", elapsed_s=12.5, tokens=150))) == {"uuid-a": {"dev": 20.0}}


def test_the_same_heartbeat_again_keeps_the_rate() -> None:
    """A page looks more often than a node tells."""
    pace = TokenRates()
    for elapsed_s, tokens in ((10.0, 100), (12.0, 150)):
        pace.fold(fleet(node("a", elapsed_s=elapsed_s, tokens=tokens)))

    assert pace.fold(fleet(node("a", elapsed_s=12.0, tokens=150))) == {"uuid-a": {"dev": 25.0}}


def test_what_is_not_known_is_left_out() -> None:
    """At first sight, after a long time without looking, and of devices that are new."""
    pace = TokenRates()

    assert pace.fold(fleet(node("a", elapsed_s=10.0, tokens=9))) == {"uuid-a": {}}
    assert pace.fold(fleet(node("a", elapsed_s=11.0 + MAX_GAP_S, tokens=99))) == {"uuid-a": {}}
    assert pace.fold(fleet(node("a", elapsed_s=12.0 + MAX_GAP_S, tokens=99, device="new"))) == {"uuid-a": {}}


def test_a_node_out_of_touch_has_no_rate() -> None:
    """What it told last is not what goes on now; when it is back, it starts anew."""
    pace = TokenRates()
    pace.fold(fleet(node("a", elapsed_s=10.0, tokens=100)))
    pace.fold(fleet(node("a", elapsed_s=12.0, tokens=150)))

    assert pace.fold(fleet(node("a", elapsed_s=12.0, tokens=150, health="suspect"))) == {}
    assert pace.fold(fleet(node("a", elapsed_s=20.0, tokens=900))) == {"uuid-a": {}}


def test_a_node_that_has_left_is_forgotten() -> None:
    """A bridge runs for months."""
    pace = TokenRates()
    pace.fold(fleet(node("a", elapsed_s=10.0, tokens=100)))

    assert pace.fold(fleet()) == {}
    assert pace.fold(fleet(node("a", elapsed_s=12.0, tokens=150))) == {"uuid-a": {}}


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 2**53)), max_size=20))
def test_no_rate_is_negative_or_infinite(beats: list[tuple[int, int]]) -> None:
    """Whatever a node tells."""
    pace = TokenRates()
    for elapsed_ms, tokens in beats:
        for rate in pace.fold(fleet(node("a", elapsed_s=elapsed_ms / 1000, tokens=tokens)))["uuid-a"].values():
            assert 0 <= rate < float("inf")
