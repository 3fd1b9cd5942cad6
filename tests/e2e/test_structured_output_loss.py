"""An answer that keeps to a schema loses its node and engine at any of its units, and nobody can tell from it."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest

from support.http import EVENTS, Event, answer_of, asked, events_of
from support.stack import Process, Stack, eventually, running
from zmqrt.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SHORT: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def stack() -> Generator[Stack]:
    """Two nodes that take 50 ms a token."""
    with running(nodes=2, worker=("--engine-opt", "step_ms=50", "--devices", "0")) as stack:
        yield stack


def kill_node(stack: Stack, client: Client | None = None) -> Process | None:
    """Kill the node that has work, its engine with it; None if none has any more. A `client` that is there is fast."""
    status = client.status() if client is not None else stack.status()
    serving = [node.node_id for node in status.nodes if node.in_flight]
    if not serving:
        return None
    victim = stack.node(serving[0])
    victim.kill()
    return victim


@pytest.mark.slow
def test_it_is_the_same_whichever_unit_its_engine_dies_after(stack: Stack) -> None:
    """At every unit of it, also before the first and behind the last: byte for byte the undisturbed one."""
    asked_for: dict[str, Any] = {"schema": SHORT, "seed": 3}
    with stack.client(default_model="mock") as client:
        whole = client.infer("which?", **asked_for)
        units, killed = len(whole.token_ids), 0
        before = client.status().counters["resumes"]
        for cut in range(units + 1):
            made: list[int] = []
            text = ""
            with client.stream("which?", **asked_for) as stream:
                while len(made) < cut and (chunk := next(stream, None)) is not None:
                    made, text = [*made, *chunk.token_ids], text + chunk.text
                victim = kill_node(stack)
                for chunk in stream:
                    made, text = [*made, *chunk.token_ids], text + chunk.text
                ended = stream.result
            if victim is not None:
                killed += 1
                stack.again(victim)
            stack.wait_for_nodes(2)

            assert ended is not None
            assert (text, made) == (whole.text, whole.token_ids), cut
            assert ended.finish_reason == whole.finish_reason == "stop"
        resumes = client.status().counters["resumes"] - before
    print(f"{units} units, {killed} nodes killed with it, {resumes} resumes")
    assert set(json.loads(whole.text)) == {"ok", "n"}
    assert resumes >= units - 3


def test_it_goes_on_through_another_bridge_after_its_node_was_killed(stack: Stack) -> None:
    """By the id of the last event: together what an undisturbed answer is, and valid."""
    one, other = stack.bridge(), stack.bridge()
    schema = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 9, "maxItems": 9}
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": "which?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "many", "schema": schema}},
        "seed": 12,
        "max_tokens": 2000,
    }
    whole = answer_of(one, "POST", "/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
    first, last_id = written(one, body, events=7)
    victim = eventually(lambda: kill_node(stack), what="the node that has it")
    rest, _ = written(other, body, last_id=last_id)
    stack.again(victim)
    stack.wait_for_nodes(2)

    assert first + rest == whole
    assert 0 < len(first) < len(whole)
    assert len(json.loads(whole)) == 9


CALL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "t",
        "parameters": {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "short", "schema": SHORT}}},
    "call": {"tools": [CALL], "tool_choice": "required", "parallel_tool_calls": False},
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_through_another_bridge_whichever_unit_its_node_was_killed_after(stack: Stack, kind: str) -> None:
    """At every unit of it: together what the undisturbed one is, and what the first bridge tells again as one."""
    one, other = stack.bridge(), stack.bridge()
    body = {"model": "mock", "messages": [{"role": "user", "content": "which?"}], "seed": 3, "logprobs": True}
    body |= KINDS[kind]
    undisturbed = chunks(one, body, "undisturbed")
    units, killed = sum(map(units_of, undisturbed)), 0
    with stack.client() as client:
        for cut in range(units + 1):
            first = chunks(one, body, f"cut {cut}", units=cut)
            victim = kill_node(stack, client)
            rest = chunks(
                other, body, f"cut {cut}", last_id=next((event.id for event in reversed(first) if event.id), "")
            )
            again = chunks(one, body, f"cut {cut}")
            if victim is not None:
                killed += 1
                stack.again(victim)
            stack.wait_for_nodes(2)

            beginning = first if any(event.id for event in first) else []
            assert told(beginning + rest) == told(again), cut
            assert told(again)[:2] == told(undisturbed)[:2], cut
    print(f"{kind}: {units} units, {killed} nodes killed")
    assert killed >= units // 2  # the last ones may have come before it was killed
    assert told(undisturbed)[2] == ("stop" if kind == "schema" else "tool_calls")


def chunks(
    bridge: Process, body: dict[str, Any], key: str, *, units: int | None = None, last_id: str = ""
) -> list[Event]:
    """Read the events of a streamed chat, to its end, or until so many units have come."""
    headers = {**EVENTS, "idempotency-key": key, **({"last-event-id": last_id} if last_id else {})}
    read, seen = list[Event](), 0
    with asked(bridge, "POST", "/v1/chat/completions", {**body, "stream": True}, headers) as answer:
        assert answer.status == 200, answer.read()
        for event in events_of(answer):
            read.append(event)
            seen += units_of(event)
            if event.data["choices"][0]["finish_reason"] is not None or (units is not None and seen >= units):
                break
    return read


def units_of(event: Event) -> int:
    """Count the units that an event is of: each has its log probability."""
    told: dict[str, Any] = event.data["choices"][0].get("logprobs") or {"content": []}
    return len(told["content"])


def told(events: list[Event]) -> tuple[str, list[tuple[str, str]], str, list[str]]:
    """Put an answer together: its words, its calls, why it is over, and the ids of its calls."""
    choices = [event.data["choices"][0] for event in events]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    return (
        "".join(choice["delta"].get("content") or "" for choice in choices),
        [(call["function"]["name"], call["function"]["arguments"]) for call in calls],
        choices[-1]["finish_reason"],
        [call["id"] for call in calls],
    )


def written(bridge: Process, body: dict[str, Any], *, events: int = 10**6, last_id: str = "") -> tuple[str, str]:
    """Read so many events of a streamed chat; return their text and the id of the last."""
    headers = {**EVENTS, "idempotency-key": "one answer", **({"last-event-id": last_id} if last_id else {})}
    text = ""
    with asked(bridge, "POST", "/v1/chat/completions", {**body, "stream": True}, headers) as answer:
        assert answer.status == 200, answer.read()
        for number, event in enumerate(events_of(answer), 1):
            choice = event.data["choices"][0]
            text += choice["delta"].get("content") or ""
            last_id = event.id or last_id
            if number == events or choice["finish_reason"] is not None:
                break
    return text, last_id
