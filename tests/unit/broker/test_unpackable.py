"""What no message can carry: its peer is told so, and nobody else notices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from support.stage import STREAM, Stage
from zmqrt.broker import status as board
from zmqrt.broker.core import SendFailure
from zmqrt.client import queries
from zmqrt.protocol import messages as m
from zmqrt.protocol import snapshot as s
from zmqrt.protocol.errors import TooLargeError


def test_a_request_whose_dispatch_cannot_be_packed_ends_with_413() -> None:
    """It is not tried again elsewhere: it would not fit there either."""
    stage, client, worker = Stage().with_peers()
    client.request(1)
    jobs = worker.work()

    stage.send_failed(worker, jobs, SendFailure.UNPACKABLE)

    assert [one.code for one in client.hear_only(m.Error)] == [413]
    assert stage.broker.snapshot(stage.now).running == 0
    assert stage.counters.internal_errors == 1


def test_a_stream_whose_units_cannot_be_packed_ends_for_that_reader() -> None:
    """With an error: a gap would be worse."""
    stage, client, worker = Stage().with_peers()
    rid = client.request(1, flags=STREAM)
    (job,) = worker.work()
    worker.partial(job.lease, 0)
    partials = client.hear_only(m.Partial)

    stage.send_failed(client, partials, SendFailure.UNPACKABLE)

    assert [(one.rid, one.code) for one in client.hear_only(m.Error)] == [(rid, 413)]
    assert client.peer in stage.broker.state.sessions


def test_a_status_that_cannot_be_packed_is_an_answer_all_the_same() -> None:
    """In a schema of its own; the library makes an exception of it."""
    stage = Stage()
    client = stage.client()
    client.send(m.Query(3, "status"))

    stage.send_failed(client, client.hear_only(m.Status), SendFailure.UNPACKABLE)

    (answer,) = client.hear_only(m.Status)
    assert (answer.qid, answer.schema) == (3, s.TOO_LARGE)
    with pytest.raises(TooLargeError):
        queries.status().read(answer)


@pytest.mark.parametrize("limit", [4000, 1500])
def test_a_status_over_the_limit_of_a_frame_is_told_in_less_detail(limit: int, monkeypatch: Any) -> None:
    """Nodes without devices; and where even that is too much, an answer that says so."""
    stage = Stage()
    devices = [m.DeviceInfo(f"d{number}", "gpu", "x" * 100) for number in range(20)]
    stage.worker(devices=devices)
    client = stage.client()
    monkeypatch.setattr(board, "MAX_FRAME_BYTES", limit)

    client.send(m.Query(3, "status"))

    (answer,) = client.hear_only(m.Status)
    assert len(answer.body) <= limit
    if limit == 4000:
        (node,) = msgspec.msgpack.decode(answer.body, type=s.Snapshot).nodes
        assert (node.health, node.devices) == ("active", [])
    else:
        assert (answer.schema, "services" in str(answer.ext["text"])) == (s.TOO_LARGE, True)
