"""Callers of /infer who leave and come back: one key is one request, and a stream goes on after the last event."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from typing import Any

import pytest

from support.http import EVENTS, Event, answer_of, asked, calling, events_of
from support.stack import Process, Stack, eventually, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ASK = {"prompt": "tell me", "max_tokens": 24}


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, Process, Process]]:
    """Two nodes that take 60 ms a token, and two bridges to them."""
    with running(nodes=2, worker=("--engine-opt", "step_ms=60,eos=never", "--devices", "0")) as stack:
        yield stack, stack.bridge(), stack.bridge()


def counter(stack: Stack, name: str) -> int:
    """Read a counter of the broker."""
    return stack.status().counters[name]


def stream(bridge: Process, key: str, *, events: int = 1000, last_id: str = "", ask: object = ASK) -> list[Event]:
    """Read so many events of a stream, then leave."""
    headers = {**EVENTS, "idempotency-key": key, **({"last-event-id": last_id} if last_id else {})}
    found: list[Event] = []
    with asked(bridge, "POST", "/infer", ask, headers) as answer:
        assert answer.status == 200, answer.read()
        for event in events_of(answer):
            found.append(event)
            if len(found) == events:
                break
    return found


def texts(events: list[Event]) -> str:
    """Join the pieces."""
    return "".join(event.data["text"] for event in events if event.name == "token")


def test_the_same_key_is_the_same_request(fleet: tuple[Stack, Process, Process]) -> None:
    """One after the other and both at once, through any bridge: it runs once. Another body under it is refused."""
    stack, one, other = fleet
    before = counter(stack, "completed")
    key = {"idempotency-key": "order 66"}
    got: list[tuple[int, Any, dict[str, str]]] = []

    def call(bridge: Process) -> None:
        got.append(answer_of(bridge, "POST", "/infer", ASK, key))

    callers = [threading.Thread(target=call, args=(bridge,)) for bridge in (one, other, one)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    got.append(answer_of(other, "POST", "/infer", ASK, key))

    assert [status for status, _, _ in got] == [200] * 4, got
    assert len({answer["text"] for _, answer, _ in got}) == 1
    assert counter(stack, "completed") == before + 1
    assert answer_of(one, "POST", "/infer", {**ASK, "max_tokens": 3}, key)[0] == 409
    assert answer_of(one, "POST", "/infer", ASK, {"idempotency-key": "caf\u00e9"})[0] == 400
    assert answer_of(one, "POST", "/infer", ASK, {"idempotency-key": ""})[0] == 400
    assert answer_of(one, "POST", "/infer", ASK, {"traceparent": "0" * 300})[0] == 200


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_stream_goes_on_after_the_last_event(fleet: tuple[Stack, Process, Process], cut: int) -> None:
    """Through the other bridge: what comes then is what had not come, and together it is the whole text."""
    _, one, other = fleet
    first = stream(one, f"cut {cut}", events=cut)

    rest = stream(other, f"cut {cut}", last_id=first[-1].id)

    assert rest[-1].name == "done"
    assert texts(first) + texts(rest) == rest[-1].data["text"]
    assert len(rest[-1].data["text"]) > len(texts(first))
    again = stream(other, f"cut {cut}", last_id=rest[-1].id)
    assert (texts(again), again[-1].data["text"]) == ("", rest[-1].data["text"])


def test_a_stream_goes_on_although_its_node_was_killed_meanwhile(fleet: tuple[Stack, Process, Process]) -> None:
    """The other node computes on from what was delivered."""
    stack, one, other = fleet
    first = stream(one, "killed", events=6)
    busy = eventually(lambda: [node for node in stack.status().nodes if node.in_flight], what="who runs it")
    process = stack.node(busy[0].node_id)

    process.kill()
    rest = stream(other, "killed", last_id=first[-1].id)
    stack.again(process)
    stack.wait_for_nodes(2)

    assert texts(first) + texts(rest) == rest[-1].data["text"]


def test_without_its_outcome_it_is_computed_again_to_the_same_end(fleet: tuple[Stack, Process, Process]) -> None:
    """The seed follows from the key, so that even a broker that knows nothing of it any more can go on."""
    stack, one, _ = fleet
    first = stream(one, "forgotten", events=6)
    with Stack() as fresh:
        fresh.broker()
        fresh.worker("--engine-opt", "step_ms=5,eos=never", node_id="fresh")
        fresh.wait_for_nodes(1)
        rest = stream(fresh.bridge(), "forgotten", last_id=first[-1].id)

    assert texts(first) + texts(rest) == rest[-1].data["text"]
    eventually(lambda: stack.status().running == 0, what="the end of the first one")


def test_a_caller_with_a_key_is_waited_for_and_then_given_up(fleet: tuple[Stack, Process, Process]) -> None:
    """For five seconds; without a key not at all."""
    stack, one, _ = fleet
    long = {"prompt": "tell me", "max_tokens": 4000}
    stream(one, "patience", events=2, ask=long)
    counted = counter(stack, "cancelled")
    stream(one, "patience", events=2, ask=long)  # it has come back in time: the first wait ends without an end

    assert stack.status().running == 1
    assert counter(stack, "cancelled") == counted
    eventually(lambda: stack.status().running == 0, within_s=15, what="a free slot")
    assert counter(stack, "cancelled") == counted + 1


def test_a_caller_may_give_it_up_by_name(fleet: tuple[Stack, Process, Process]) -> None:
    """DELETE ends it at once, key or not; who waits for it gets 499, and others' names are not known."""
    stack, one, other = fleet
    got: list[tuple[int, Any, dict[str, str]]] = []
    long = {"prompt": "tell me", "max_tokens": 4000}
    headers = {"x-request-id": "job-7", "idempotency-key": "k"}
    waiting = threading.Thread(target=lambda: got.append(answer_of(one, "POST", "/infer", long, headers)))
    waiting.start()
    eventually(lambda: stack.status().running == 1, what="a running request")

    assert answer_of(other, "DELETE", "/infer/job-7")[0] == 404
    assert answer_of(one, "DELETE", "/infer/job-8")[0] == 404
    status, said, _ = answer_of(one, "DELETE", "/infer/job-7")
    waiting.join()

    assert (status, said) == (200, {"request_id": "job-7", "status": "cancelled"})
    assert (got[0][0], got[0][1]["reason"]) == (499, "cancelled")
    eventually(lambda: stack.status().running == 0, within_s=3, what="a free slot")
    assert answer_of(one, "DELETE", "/infer/job-7")[0] == 404


# --- callers that are gone -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Generator[tuple[Stack, Process]]:
    """A node with one slot whose steps take 300 ms, of which the broker hears five times a second."""
    options = "step_ms=300,eos=never,chunk=8"
    beats = ("--heartbeat-interval", "200ms", "--node-eviction-timeout", "10s")
    worker = ("--engine-opt", options, "--devices", "0", "--slots", "1", "--node-max-capacity", "1")
    with running(worker=worker, broker=beats) as stack:
        yield stack, stack.bridge()


def steps(stack: Stack) -> int:
    """Return the steps of the only device, as it told last."""
    return stack.status().nodes[0].devices[0].steps


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("phase", ["prompt", "decoding"])
def test_a_caller_who_is_gone_frees_the_slot_within_a_step(
    narrow: tuple[Stack, Process], accept: str, phase: str
) -> None:
    """While the prompt is computed, and while tokens are: what comes next has the slot after the step under way."""
    stack, bridge = narrow
    words = "w" * (400 if phase == "prompt" else 4)  # 8 a step
    body = json.dumps({"prompt": words, "max_tokens": 4000}).encode()
    begun = steps(stack)
    with calling(bridge, "/infer", body, headers={"accept": accept}):
        eventually(lambda: steps(stack) >= begun + 3, what="some steps")
        before = steps(stack)
    status, _, _ = answer_of(bridge, "POST", "/infer", {"prompt": "x", "max_tokens": 1})

    assert status == 200
    # One step that the last heartbeat did not know, one under way, and the short request: its prompt is two pieces.
    eventually(lambda: stack.status().nodes[0].devices[0].running == 0, what="an idle device")
    assert steps(stack) - before <= 5


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_caller_who_is_gone_before_its_turn_never_has_one(narrow: tuple[Stack, Process], accept: str) -> None:
    """While it sends, and while it waits behind others."""
    stack, bridge = narrow
    body = json.dumps({"prompt": "tell me", "max_tokens": 400}).encode()
    enough = {"accept": accept, "x-request-timeout": "600"}  # with less the broker would not let it wait
    asked_before = counter(stack, "requests")
    with calling(bridge, "/infer", body, headers={"accept": accept}, sent=10):
        pass
    with calling(bridge, "/infer", body):
        eventually(lambda: stack.status().running == 1, what="a busy slot")
        with calling(bridge, "/infer", body, headers=enough):
            eventually(lambda: stack.status().queued == 1, what="one that waits")
        eventually(lambda: stack.status().queued == 0, within_s=5, what="nobody that waits")
        assert stack.status().running == 1

    eventually(lambda: stack.status().running == 0, within_s=5, what="a free slot")
    assert counter(stack, "requests") == asked_before + 2
