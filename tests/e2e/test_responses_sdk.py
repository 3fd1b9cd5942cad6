"""OpenAI's own client, as it is, over Responses: whole and streamed, tools and schemas; how it fails and is closed."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest

from support.lazily import lazily
from support.stack import Process, Stack, eventually, running

openai = lazily("openai")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
WORKER = ("--engine-opt", "step_ms=5,eos=never", "--devices", "0", "--max-model-len", "2000")


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, Process]]:
    """One node and a bridge."""
    with running(worker=WORKER) as stack:
        yield stack, stack.bridge()


@pytest.fixture(scope="module")
def client(fleet: tuple[Stack, Process]) -> Generator[Any]:
    """Make a client of the fleet; untyped here, since its overloads know no arguments in a dictionary."""
    with openai.OpenAI(base_url=f"{fleet[1].endpoints['http']}/v1", api_key="none") as made:
        yield made


RESPOND: dict[str, Any] = {"model": "mock", "input": "hello", "max_output_tokens": 12, "extra_body": {"seed": 7}}


def test_a_response(client: Any) -> None:
    """Whole, twice the same; and cut short, which its status says."""
    first, second = (client.responses.create(**RESPOND) for _ in range(2))

    assert (first.status, first.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (first.usage.output_tokens, first.usage.total_tokens) == (12, 12 + first.usage.input_tokens)
    assert first.output_text == second.output_text != ""
    assert first.id.startswith("resp_")
    again = client.responses.create(**{**RESPOND, "input": [{"role": "user", "content": "hello"}, *first.output]})
    assert again.usage.input_tokens > first.usage.input_tokens


def test_a_streamed_response_is_the_same_text(client: Any) -> None:
    """As events in their order, and as the client's own helper folds it."""
    whole = client.responses.create(**RESPOND)
    events = list(client.responses.create(**RESPOND, stream=True))
    types = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]

    assert types == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage
    stop = client.responses.create(**{**RESPOND, "input": "hi"}, text={"format": ANSWER})
    with client.responses.stream(**{**RESPOND, "input": "hi"}, text={"format": ANSWER}) as stream:
        folded = stream.get_final_response()
    assert (folded.status, folded.output_text) == ("completed", stop.output_text)
    assert stop.output_text in ('{"a":"x"}', '{"a":"y"}')


ANSWER: dict[str, Any] = {
    "type": "json_schema",
    "name": "answer",
    "schema": {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


def test_a_response_calls_a_tool_and_reads_what_it_came_to(client: Any) -> None:
    """Whole and streamed the same call; its items come back as input."""
    tool = {"type": "function", "name": "answer", "parameters": ANSWER["schema"]}
    ask = {**RESPOND, "max_output_tokens": 200, "tools": [tool], "tool_choice": "required"}
    whole = client.responses.create(**ask)
    with client.responses.stream(**ask) as stream:
        folded = stream.get_final_response()
    call = whole.output[0]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items = [{"role": "user", "content": "hello"}, *whole.output, result]
    last = client.responses.create(**{**RESPOND, "input": items, "tools": [tool]})

    assert (whole.status, call.type, call.name) == ("completed", "function_call", "answer")
    assert json.loads(call.arguments)["a"] in ("x", "y")
    assert [(item.name, item.arguments) for item in folded.output] == [(call.name, call.arguments)]
    assert last.usage.input_tokens > whole.usage.input_tokens


def test_a_response_that_cannot_be_is_a_bad_request(client: Any) -> None:
    """What is kept nowhere is named, streamed or not."""
    for stream in (False, True):
        for name, value in (("store", True), ("previous_response_id", "resp_1"), ("input", "x" * 3000)):
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(**{**RESPOND, name: value}, stream=stream)
            assert caught.value.param == name


def test_a_streamed_response_that_is_closed_frees_the_slot(fleet: tuple[Stack, Process], client: Any) -> None:
    """At once, not at its end."""
    with client.responses.create(**{**RESPOND, "max_output_tokens": 1900}, stream=True) as stream:
        next(iter(stream))
        eventually(lambda: fleet[0].status().running == 1, what="a running request")

    eventually(lambda: fleet[0].status().running == 0, within_s=5, what="a free slot")
