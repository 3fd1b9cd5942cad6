"""What happened to a request, told by a real broker about real nodes that were killed."""

from __future__ import annotations

import json
import time

import pytest

from support.cli import zmqrt
from support.stack import Stack, eventually, running
from zmqrt.client import Client
from zmqrt.protocol.request_trace import spent

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def where(client: Client, request_id: str) -> str:
    """Return the node that streams a request; empty while none does."""
    stories = client.explain(request_id)
    return stories[0].attempts[-1].node if stories and stories[0].state == "streaming" else ""


def test_a_request_resumed_after_kill_9_tells_its_story() -> None:
    """Who had it, how far it came, that the node was lost, who went on from where, and where the time went."""
    with running(nodes=2, worker=("--engine-opt", "step_ms=10,eos=never")) as stack, stack.client() as client:
        began = time.monotonic()
        handle = client.submit("hi", max_tokens=150, stream=True, request_id="job-7")
        first = eventually(lambda: where(client, "job-7"), what="the first units")
        eventually(lambda: client.explain("job-7")[0].units > 20, what="some more")
        stack.node(first).kill()
        result = handle.result()
        took_s = time.monotonic() - began

        (story,) = client.explain("job-7")
        lost, last = story.attempts
        assert (story.state, story.units, story.finish_reason) == ("done", result.usage.completion_tokens, "length")
        assert story.rid == handle.rid.hex()
        assert lost.node == first
        assert last.node != first
        assert "lost" in lost.why
        assert last.why == ""
        assert lost.from_unit == 0
        assert lost.units == last.from_unit > 20
        assert lost.units + last.units == 150
        assert {lost.device, last.device} <= {"mock:0", "mock:1"}
        assert lost.batch >= 1
        assert lost.first_s is not None
        assert lost.last_s is not None
        assert lost.ended_s is not None
        assert lost.dispatched_s <= lost.first_s <= lost.last_s <= lost.ended_s <= last.dispatched_s <= story.age_s
        assert story.age_s <= took_s
        parts = spent(story.age_s, story.attempts)
        assert parts.decode_s > 0
        assert parts.lost_s > 0
        assert sum((parts.queue_s, parts.dispatch_s, parts.prefill_s, parts.decode_s, parts.lost_s)) == pytest.approx(
            story.age_s
        )
        kinds = [(event.kind, event.subject) for event in client.status().events]
        assert kinds[-2:] == [("lost", first), ("resumed", first)]

        shown = zmqrt("explain", "job-7", "--broker", stack.clients)
        assert shown.returncode == 0, shown.stderr
        for words in (first, last.node, f"after {lost.units} tokens", "was lost", "decode"):
            assert words in shown.stdout
        (told,) = json.loads(zmqrt("explain", "job-7", "--broker", stack.clients, "--json").stdout)
        assert told["attempts"][0]["node"] == first


def test_a_request_that_waits_and_one_that_nobody_knows() -> None:
    """The first says why and behind how many; of the second every broker was asked."""
    worker = ("--engine-opt", "step_ms=50,eos=never", "--node-max-capacity", "1", "--devices", "0", "--slots", "1")
    with running(worker=(*worker, "--batch-max-size", "1")) as stack, stack.client() as client:
        handles = [client.submit("hi", max_tokens=500, request_id=f"job-{number}") for number in range(3)]
        eventually(lambda: client.status().queued == 2, what="two that wait")

        shown = zmqrt("explain", "job-2", "--broker", stack.clients)
        unknown = zmqrt("explain", "job-9", "--broker", f"{stack.clients},tcp://127.0.0.1:1")

        for handle in handles:
            handle.cancel()
        assert "1 waited before it" in shown.stdout
        assert "the only node was busy" in shown.stdout
        assert unknown.returncode == 1
        assert "job-9" in unknown.stderr
        assert "tcp://127.0.0.1:1" in unknown.stderr


def test_a_broker_that_goes_down_leaves_its_part_of_the_story() -> None:
    """The client goes on at the next broker, which says that units were made elsewhere."""
    with Stack() as stack:
        first = stack.broker()
        stack.second_broker()
        for number in range(2):
            stack.worker("--engine-opt", "step_ms=10,eos=never", node_id=f"node-{number}")
        for endpoint in stack.clients.split(","):
            stack.wait_for_nodes(2, endpoint)
        with stack.client() as client:
            handle = client.submit("hi", max_tokens=150, stream=True, request_id="job-7")
            eventually(lambda: where(client, "job-7") and client.explain("job-7")[0].units > 20, what="some units")
            first.kill()
            handle.result()

            (story,) = client.explain("job-7")
        assert story.begun_elsewhere > 20
        assert story.attempts[0].from_unit == story.begun_elsewhere
        assert story.units == 150
