"""A broker, judged by what came of asking it."""

import msgspec
import pytest

from support import fake_fleet
from support.top import service
from zmqrt.client.doctor.brokers import Asked, judge
from zmqrt.client.doctor.check import Check
from zmqrt.protocol.snapshot import NodeHealth, NodeStatus, Snapshot

HERE = "tcp://127.0.0.1:7555"
NOW = 1_795_000_000.0
NODE = msgspec.structs.replace(fake_fleet.node("node-0"), services=["tiny"], devices=[])
SERVICE = service("tiny")
SNAPSHOT = msgspec.structs.replace(fake_fleet.EMPTY, broker_id="b1", uptime_s=75.0, nodes=[NODE], services=[SERVICE])


def asked(snapshot: Snapshot = SNAPSHOT) -> Asked:
    """Make facts of a broker that answered."""
    return Asked(endpoint=HERE, is_named=True, snapshot=snapshot, round_trip_s=0.0015, unix_s=NOW)


def unwell(facts: Asked) -> list[Check]:
    """Return what is not ok."""
    return [one for one in judge(facts) if one.verdict != "ok"]


def with_nodes(*nodes: NodeStatus) -> Asked:
    """Make facts of a broker with other nodes."""
    return asked(msgspec.structs.replace(SNAPSHOT, nodes=list(nodes)))


def node(health: NodeHealth = "active", phase: str = "ready") -> NodeStatus:
    """Make another node."""
    return msgspec.structs.replace(NODE, node_id="node-1", health=health, phase=phase)


def test_a_broker_that_serves_is_well() -> None:
    """It tells its name, how fast it answered, nodes and models."""
    found = judge(asked())
    told = {one.name: one.found for one in found}

    assert unwell(asked()) == []
    assert {one.group for one in found} == {f"broker {HERE}"}
    assert told == {"reach": "b1 answers in 1.5 ms", "nodes": "1 of 1 ready", "models": "tiny"}


@pytest.mark.parametrize(("is_named", "verdict"), [(True, "bad"), (False, "note")])
def test_a_broker_that_somebody_named_has_to_be_there(is_named: bool, verdict: str) -> None:  # noqa: FBT001 - parametrized
    """The default one need not."""
    (one,) = judge(Asked(endpoint=HERE, is_named=is_named, error=f"nobody listens at {HERE}; start one"))

    assert (one.name, one.verdict) == ("reach", verdict)
    assert one.found == f"nobody listens at {HERE}"
    assert one.remedy.startswith("start one")


def test_an_error_without_advice_gets_some() -> None:
    """Every line that is not ok says what to do."""
    (one,) = judge(Asked(endpoint=HERE, is_named=True, error="cannot connect (No route to host)"))

    assert "--broker" in one.remedy


@pytest.mark.parametrize(
    ("joined", "verdict", "words"),
    [
        ([], "note", "no node has joined"),
        ([NODE, node(phase="loading")], "note", "1 of 2 ready"),
        ([NODE, node(health="lost")], "note", "gone: node-1"),
        ([NODE, node(phase="failed")], "bad", "node-1 cannot serve"),
    ],
)
def test_nodes_that_do_not_serve_are_told(joined: list[NodeStatus], verdict: str, words: str) -> None:
    """Only one that gave up is bad."""
    (one,) = unwell(with_nodes(*joined))

    assert (one.name, one.verdict) == ("nodes", verdict)
    assert words in one.found
    assert one.remedy


def test_a_model_that_nobody_serves_is_a_note() -> None:
    """With how many wait for it."""
    idle = msgspec.structs.replace(SERVICE, service="large", nodes=0, queued=3)

    (one,) = unwell(asked(msgspec.structs.replace(SNAPSHOT, services=[SERVICE, idle])))

    assert one.verdict == "note"
    assert "large now, 3 requests waiting" in one.found


def test_a_broker_that_leaves_is_a_note() -> None:
    """It takes no new requests."""
    assert [one.verdict for one in unwell(asked(msgspec.structs.replace(SNAPSHOT, draining=True)))] == ["note"]


@pytest.mark.parametrize(
    ("apart_s", "verdict", "words"),
    [(1.5, "ok", "1.5 s ahead"), (-2.0, "ok", "2.0 s behind"), (12.25, "note", "12.2 s ahead"), (-3, "note", "behind")],
)
def test_clocks_that_differ_are_told(apart_s: float, verdict: str, words: str) -> None:
    """Above two seconds the remedy says that only logs suffer."""
    later = msgspec.structs.replace(SNAPSHOT, unix_s=NOW + apart_s)
    (one,) = [one for one in judge(asked(later)) if one.name == "clocks"]

    assert one.verdict == verdict
    assert words in one.found
    assert ("logs" in one.remedy) == (verdict == "note")
