"""The two transition tables: every state with every event, and a way out of each."""

from __future__ import annotations

import itertools

import pytest

from zmqrt.broker import nodes, requests
from zmqrt.broker.nodes import NodeEvent, NodeState
from zmqrt.broker.requests import RequestEvent, RequestState


def test_a_request_always_comes_to_its_end_and_stays_there() -> None:
    """From every state ENDED is one step away, and nothing leads out of it."""
    for state in RequestState:
        if state is not RequestState.ENDED:
            assert requests.TRANSITIONS[state][RequestEvent.ENDED] is RequestState.ENDED
    assert requests.TRANSITIONS[RequestState.ENDED] == {}


def test_only_what_waits_is_dispatched_and_only_what_is_leased_is_lost() -> None:
    """All other pairs do not exist."""
    able = {event: {state for state in RequestState if event in requests.TRANSITIONS[state]} for event in RequestEvent}
    leased = {RequestState.LEASED, RequestState.STREAMING}

    assert able[RequestEvent.DISPATCHED] == {RequestState.QUEUED}
    assert able[RequestEvent.UNITS] == able[RequestEvent.LEASE_LOST] == leased


def test_every_node_can_be_forgotten() -> None:
    """REMOVED can be reached from each state, and is the end."""
    reached = {NodeState.REMOVED}
    while True:
        more = {start for (start, _), stop in nodes.TRANSITIONS.items() if stop in reached} - reached
        if not more:
            break
        reached |= more

    assert reached == set(NodeState)
    assert not any(start is NodeState.REMOVED for start, _ in nodes.TRANSITIONS)


def test_a_node_comes_back_from_wherever_it_was() -> None:
    """READY of the same node is always welcome, until it is forgotten."""
    for state in NodeState:
        if state is not NodeState.REMOVED:
            assert nodes.TRANSITIONS[state, NodeEvent.RETURNED] is NodeState.ACTIVE


@pytest.mark.parametrize(("state", "event"), list(itertools.product(NodeState, NodeEvent)))
def test_no_event_makes_a_node_active_but_a_sign_of_life(state: NodeState, event: NodeEvent) -> None:
    """Time alone never does."""
    stop = nodes.TRANSITIONS.get((state, event))

    assert stop is not NodeState.ACTIVE or event in (NodeEvent.HEARD, NodeEvent.RETURNED)
