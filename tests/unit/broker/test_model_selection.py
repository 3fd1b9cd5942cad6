"""A request that names no model: the broker knows which one lives, and says what there is where it cannot tell."""

from __future__ import annotations

import pytest

from support.stage import STREAM, Client, Stage, Worker, offer, rid_of
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import ErrorKind

EMBED: m.Ext = {"task": "embed"}


def embedder(name: str) -> m.ServiceOffer:
    """Offer a model that embeds."""
    return m.ServiceOffer(name, 4, "embed", revision="r1")


def refusal(client: Client) -> m.Error:
    """Take the one answer, which is a refusal."""
    (error,) = client.hear()
    assert isinstance(error, m.Error)
    return error


def test_the_only_model_of_its_task_is_taken() -> None:
    """Whatever else there is for another task."""
    _, client, worker = Stage().with_peers(services=[offer("toy"), embedder("vec")])

    client.request(1, service="")
    client.request(2, service="", ext=EMBED)
    client.request(3, service="", ext={"task": "generate"})

    assert [job.service for job in worker.work()] == ["toy", "vec", "toy"]


def test_several_that_serve_are_listed() -> None:
    """And the request goes nowhere, unless it prefers one of them."""
    stage, client, worker = Stage().with_peers(services=[embedder("b"), embedder("a"), offer("toy")])

    client.request(1, service="", ext=EMBED)
    error = refusal(client)
    client.request(2, service="", ext={**EMBED, "prefer": "b"})
    client.request(3, service="", ext={**EMBED, "prefer": "toy"})

    assert (error.code, error.retryable) == (400, False)
    assert error.text.startswith("several models can embed: a, b; say which one")
    assert [job.service for job in worker.work()] == ["b"]
    assert refusal(client).code == 400
    assert stage.counters.rejected_bad == 2


@pytest.mark.parametrize("way", ["leaves", "is lost", "drains"])
def test_a_model_whose_last_node_has_gone_is_no_choice_beside_one_that_serves(way: str) -> None:
    """It makes no request ambiguous, from the first moment on."""
    stage = Stage()
    client = stage.client()
    gone, worker = stage.worker(services=[offer("gone")]), stage.worker(services=[offer("toy")])
    match way:
        case "leaves":
            gone.send(m.Leave(gone.epoch))
        case "is lost":
            stage.gone(gone)
        case _:
            gone.send(m.Draining(gone.epoch))

    client.request(1, service="")

    assert [job.service for job in worker.work()] == ["toy"]


def test_what_has_left_is_not_waited_for() -> None:
    """Its client is told to come again; by then another model may serve."""
    stage, client, worker = Stage().with_peers(services=[offer("old")])
    worker.send(m.Leave(worker.epoch))

    client.request(1, service="")
    error = refusal(client)
    new = stage.worker(services=[offer("new")])
    client.request(1, service="")

    assert (error.code, error.retryable, error.text) == (
        503,
        True,
        "no model that can generate has a healthy worker; see 'zmqrt status'",
    )
    assert [job.service for job in new.work()] == ["new"]


def test_what_was_lost_a_moment_ago_is_waited_for_where_nothing_serves() -> None:
    """Its node comes back within seconds of a restart."""
    stage, client, worker = Stage().with_peers(services=[offer("toy")])
    stage.gone(worker)

    client.request(1, service="")
    assert client.hear() == []
    again = stage.worker(services=[offer("toy")])

    assert [job.service for job in again.work()] == ["toy"]


def test_one_model_that_loads_is_told_of_as_if_it_had_been_named() -> None:
    """With how far it is."""
    stage = Stage()
    client, worker = stage.client(), Worker(stage, "w", "", 4)
    worker.register(services=[offer("toy")])
    worker.beat(phase="loading", percent=40, elapsed_ms=4000, limit=0)

    client.request(1, service="")

    error = refusal(client)
    assert (error.reason, error.text) == ("starting", "model 'toy' is not ready: loading, 40 %")


def test_several_models_that_load_are_no_mistake_of_the_caller() -> None:
    """One that never comes up must not turn a request away for good."""
    stage = Stage()
    client = stage.client()
    for name in ("toy", "typo"):
        worker = Worker(stage, name, "", 4)
        worker.register(services=[offer(name)])
        worker.beat(phase="loading", limit=0)

    client.request(1, service="")

    error = refusal(client)
    assert (error.code, error.retryable) == (503, True)
    assert error.text == "no model that can generate is ready; there will be: toy, typo"


def test_what_nobody_can_do_is_refused_with_what_there_is() -> None:
    """A new broker first lets its nodes register."""
    stage = Stage()
    client = stage.client()
    client.request(1, service="")
    assert refusal(client).reason == ErrorKind.NO_WORKER.value
    stage.worker(services=[offer("toy")])
    client.request(1, service="", ext=EMBED)
    assert refusal(client).code == 503

    stage.pass_time(stage.timing.lost_grace_s + 0.1)
    client.request(1, service="", ext=EMBED)
    client.request(2, service="", ext={"task": "dance\n"})

    first, second = client.hear()
    assert (first.code, first.text) == (404, "no model here can embed; there are: toy")
    assert (second.code, second.text) == (404, "no model here can 'dance\\n'; there are: toy")


def test_a_leaving_broker_says_so_first() -> None:
    """Its client then turns to another one, which may have what this one lacks."""
    stage = Stage()
    client = stage.client()
    stage.broker.drain(stage.now)
    stage.collect()
    client.hear()

    client.request(1, service="")

    assert refusal(client).reason == "draining"


def test_the_first_units_tell_the_model_that_was_chosen() -> None:
    """With it the stream can go on at another broker, whatever serves there beside."""
    _, client, worker = Stage().with_peers(services=[offer("toy")])
    client.request(1, service="", flags=STREAM)
    (job,) = worker.work()
    worker.partial(job.lease, 0, 1)
    worker.partial(job.lease, 1, 1)

    assert [partial.ext.get("service") for partial in client.hear()] == ["toy", None]


@pytest.mark.parametrize("is_over", [False, True])
def test_a_repeat_means_what_its_first_was_given(*, is_over: bool) -> None:
    """Though by now two models could be meant: it joins the first, or gets its answer."""
    stage = Stage()
    first, second = stage.client(), stage.client()
    worker = stage.worker(services=[offer("toy")])
    first.request(1, service="")
    (job,) = worker.work()
    stage.worker(services=[offer("other")])
    if is_over:
        worker.final(job.lease)

    second.request(1, service="")
    if not is_over:
        worker.final(job.lease)

    for client in (first, second):
        (final,) = client.hear_only(m.Final)
        assert (final.rid, final.body) == (rid_of(1), b"done")
    assert worker.work() == []


def test_a_repeat_may_name_the_model_and_another_name_is_a_conflict() -> None:
    """It is the request that was made, or it is not."""
    stage = Stage()
    first, second = stage.client(), stage.client()
    worker = stage.worker(services=[offer("toy"), offer("other")])
    first.request(1, service="", ext={"prefer": "toy"})

    second.request(1, service="toy")
    second.request(2, service="")
    first.request(1, service="other")

    assert len(worker.work()) == 1
    assert [error.code for error in second.hear_only(m.Error)] == [400]
    assert [error.code for error in first.hear_only(m.Error)] == [409]
