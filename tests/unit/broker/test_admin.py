"""ADMIN: who may ask, and what comes of it."""

from __future__ import annotations

import pytest

from support.stage import Client, Stage
from zmqrt.protocol import admin
from zmqrt.protocol import messages as m
from zmqrt.protocol.admin import AdminOutcome


def ask(client: Client, node: str = "node-1", verb: str = "drain") -> AdminOutcome:
    """Ask, and read the answer."""
    client.send(m.Admin(1, verb, {"node": node}))
    (status,) = client.hear_only(m.Status)
    assert (status.schema, status.version) == (admin.SCHEMA, admin.SCHEMA_VERSION)
    return admin.decode(status.body)


def test_an_admin_may_drain_a_node_by_name() -> None:
    """The node is told, and the answer says by when."""
    stage = Stage(is_admin=lambda user: user == "root")
    root, worker = stage.client(user="root"), stage.worker("node-1")

    outcome = ask(root)

    assert outcome == AdminOutcome(is_done=True, text="1 node(s) called 'node-1' are draining", deadline_s=30.0)
    assert worker.hear_only(m.Drain) == [m.Drain(30_000)]
    assert [node.state.value for node in stage.broker.state.nodes_by_uuid.values()] == ["draining"]


def test_asking_twice_is_as_good_as_once() -> None:
    """The second answer says so, and the node hears nothing new."""
    _, client, worker = Stage().with_peers("node-1")
    ask(client)
    worker.hear()

    assert ask(client).text == "node 'node-1' is draining already"
    assert worker.hear_only(m.Drain) == []


def test_whoever_is_no_admin_is_refused() -> None:
    """And the node hears nothing of it."""
    stage = Stage(is_admin=lambda user: user == "root")
    mallory, worker = stage.client(user="mallory"), stage.worker("node-1")

    outcome = ask(mallory)

    assert (outcome.is_done, outcome.reason) == (False, "forbidden")
    assert "'mallory' is not an admin" in outcome.text
    assert worker.hear() == []


def test_an_unknown_node_is_answered_with_those_there_are() -> None:
    """Sorted, and no more than fit a screen."""
    stage = Stage()
    client = stage.client()
    nobody = ask(client, "node-x").text
    for number in range(22):
        stage.worker(f"node-{number:02}")
    outcome = ask(client, "node-x")

    assert nobody == "no node is called 'node-x'; no node has joined"
    assert outcome.reason == "model_not_found"
    assert "there are: node-00, node-01," in outcome.text
    assert outcome.text.endswith("node-19 and 2 more")


def test_a_node_that_cannot_hear_is_not_asked() -> None:
    """Its state is told: it needs no drain any more."""
    stage = Stage()
    client = stage.client()
    stage.worker("node-1")
    stage.pass_time(stage.timing.eviction_s + 1)
    outcome = ask(client)

    assert outcome.reason == "no_worker"
    assert "it is evicted" in outcome.text


@pytest.mark.parametrize("verb", ["load", ""])
def test_an_unknown_verb_names_the_known(verb: str) -> None:
    """It is a bad request."""
    stage = Stage()
    outcome = ask(stage.client(), verb=verb)

    assert outcome.reason == "bad_request"
    assert "known: drain" in outcome.text
