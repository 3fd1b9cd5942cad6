"""How long requests took, by model: what the broker counts of each."""

from __future__ import annotations

from support.stage import STREAM, Stage, ask
from zmqrt.protocol import messages as m
from zmqrt.protocol.histogram import Histogram
from zmqrt.protocol.snapshot import ServiceStatus, decode, encode


def told(stage: Stage) -> ServiceStatus:
    """Read the one service there is."""
    (service,) = stage.broker.snapshot(stage.now).services
    return service


def only(histogram: Histogram) -> float:
    """Return the one length that was counted."""
    assert histogram.count == 1
    return round(histogram.total_s, 6)


def test_a_stream_is_measured_from_end_to_end() -> None:
    """Queue, first token, tokens, the whole; and its tokens and reason are counted."""
    stage = Stage()
    client = stage.client()
    worker = stage.worker(credit=0)
    client.request(1, flags=STREAM)
    stage.pass_time(1.0)
    worker.beat(limit=1)
    (job,) = worker.work()
    stage.pass_time(0.5)
    worker.partial(job.lease, 0)
    stage.pass_time(2.0)
    worker.partial(job.lease, 1, 4)
    meta: m.Ext = {"finish_reason": "length", "prompt_tokens": 9, "completion_tokens": 5}
    worker.send(m.WorkerFinal(worker.epoch, job.lease, 5, 2, meta, b""))

    service = told(stage)
    assert only(service.queue_time) == 1.0
    assert only(service.first_token) == 1.5
    assert only(service.token_time) == 0.5
    assert only(service.duration) == 3.5
    assert (service.prompt_tokens, service.generated_tokens, service.finished) == (9, 5, {"length": 1})


def test_a_refusal_by_a_full_node_does_not_count_twice() -> None:
    """The time in the queue is that until the first dispatch."""
    stage, client, worker = Stage().with_peers(capacity=1)
    client.request(1)
    (job,) = worker.work()
    worker.error(job.lease, 429, "no_slot")
    worker.beat(limit=5)
    (job,) = worker.work()
    worker.final(job.lease)

    assert told(stage).queue_time.count == 1


def test_units_that_come_together_are_not_fast() -> None:
    """What came with the first is not counted into the time of a further one."""
    stage, _, worker, job = Stage().running(flags=STREAM)
    worker.partial(job.lease, 0, 9)
    stage.pass_time(0.5)
    worker.partial(job.lease, 9, 1)
    worker.final(job.lease, 10)

    assert only(told(stage).token_time) == 0.5


def test_a_first_token_comes_once() -> None:
    """However often a whole answer is begun anew."""
    stage, client, worker = Stage().with_peers()
    client.request(1, flags=m.IDEMPOTENT)
    for _ in range(3):
        (job,) = worker.work()
        worker.partial(job.lease, 0)
        worker.error(job.lease, 503, "engine_restarted", "it died", credit=1, ext={"crashes": 0})

    assert told(stage).first_token.count == 1


def test_numbers_beyond_reason_do_not_make_the_status_unreadable() -> None:
    """One node that counts wrongly must not blind everybody."""
    stage, client, worker = Stage().with_peers(capacity=9)
    client.send(*(ask(number) for number in range(1, 5)))
    for job in worker.work():
        meta: m.Ext = {"prompt_tokens": 2**63 - 1, "completion_tokens": 2**63 - 1}
        worker.send(m.WorkerFinal(worker.epoch, job.lease, 0, 9, meta, b""))

    assert decode(encode(stage.broker.snapshot(stage.now))).services[0].generated_tokens == 0


def test_what_a_node_says_cannot_make_names_or_go_backwards() -> None:
    """A reason nobody knows is none, and counts below 0 are 0."""
    stage, client, worker = Stage().with_peers(capacity=2)
    client.send(ask(1), ask(2))
    strange: list[m.Ext] = [
        {"finish_reason": "because", "prompt_tokens": -5, "completion_tokens": 3},
        {"finish_reason": 7},
    ]
    for job, meta in zip(worker.work(), strange, strict=True):
        worker.send(m.WorkerFinal(worker.epoch, job.lease, 0, 2, meta, b""))

    service = told(stage)
    assert service.finished == {"": 2}
    assert (service.prompt_tokens, service.generated_tokens) == (0, 0)
