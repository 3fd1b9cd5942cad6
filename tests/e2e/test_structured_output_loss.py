"""An answer that keeps to a schema loses its node and engine at any of its units, and nobody can tell from it."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest

from support.http import EVENTS, answer_of, asked, events_of
from support.stack import Process, Stack, eventually, running

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


def kill_node(stack: Stack) -> Process | None:
    """Kill the node that has work, its engine with it; None if none has any more."""
    serving = [node.node_id for node in stack.status().nodes if node.in_flight]
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
