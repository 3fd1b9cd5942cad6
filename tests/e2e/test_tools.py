"""Tools in a real fleet: OpenAI's own client calls one and tells what it returned; a call outlives its node."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from support.cli import zmqrt
from support.http import answer_of, asked
from support.http import events_of as events_in
from support.lazily import lazily
from support.stack import Process, Stack, running
from zmqrt.client import AnswerParser, CalledTool, RequestError
from zmqrt.protocol.markup import Delta

openai = lazily("openai")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
CALLED = (
    "<think>Where?</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
ASK: list[Any] = [{"role": "user", "content": "Rain?"}]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Stack, list[Process]]]:
    """Two nodes that call tools, then speak; and two bridges."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps([CALLED, "No rain in Zürich."]))
    with running(nodes=2, worker=("--engine-opt", f"step_ms=5,script={script}", "--devices", "0")) as stack:
        yield stack, [stack.bridge(), stack.bridge()]


def client_of(bridge: Process) -> Any:
    """Make a client as its users do."""
    return openai.OpenAI(base_url=f"{bridge.endpoints['http']}/v1", api_key="none")


def test_openai_s_own_client_calls_a_tool_and_tells_what_it_returned(fleet: tuple[Stack, list[Process]]) -> None:
    """One round trip, unmodified; its second request has the first answer as it came."""
    with client_of(fleet[1][0]) as client:
        first = client.chat.completions.create(model="mock", messages=ASK, tools=[TOOL, TIME])
        message = first.choices[0].message
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": "dry" if call.function.name == "weather" else "noon"}
            for call in message.tool_calls
        ]
        second = client.chat.completions.create(
            model="mock", messages=[*ASK, message.model_dump(exclude_none=True), *results], tools=[TOOL, TIME]
        )

    assert first.choices[0].finish_reason == "tool_calls"
    assert (message.content, message.reasoning_content) == ("One moment.", "Where?")
    assert [call.function.name for call in message.tool_calls] == ["weather", "time"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Zürich"}
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("No rain in Zürich.", "stop")


def test_the_same_streamed(fleet: tuple[Stack, list[Process]]) -> None:
    """Put together by its own accumulator; no markup in any delta."""
    with (
        client_of(fleet[1][0]) as client,
        client.chat.completions.stream(model="mock", messages=ASK, tools=[TOOL, TIME]) as stream,
    ):
        events = list(stream)
        choice = stream.get_final_completion().choices[0]

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "time"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Zürich"}
    assert not any("<" in event.delta for event in events if event.type == "content.delta")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_is_one_that_is_valid(fleet: tuple[Stack, list[Process]], choice: Any) -> None:
    """Whatever the model would have said: the script is not followed here."""
    with client_of(fleet[1][0]) as client:
        for seed in range(2):
            answer = client.chat.completions.create(
                model="mock", messages=ASK, tools=[TOOL], tool_choice=choice, seed=seed, max_tokens=2000
            )
            calls = answer.choices[0].message.tool_calls
            assert answer.choices[0].finish_reason == "tool_calls"
            assert all(call.function.name == "weather" for call in calls)
            assert all(json.loads(call.function.arguments).keys() == {"city"} for call in calls)
            assert choice == "required" or len(calls) == 1


def test_without_tools_or_with_none_wanted_an_answer_is_words(fleet: tuple[Stack, list[Process]]) -> None:
    """`tool_choice: none` and an empty list never fail."""
    each: tuple[dict[str, Any], ...] = ({"tools": []}, {"tools": [TOOL], "tool_choice": "none"})
    for fields in each:
        body = {"model": "mock", "messages": ASK, **fields}
        status, answer, _ = answer_of(fleet[1][0], "POST", "/v1/chat/completions", body)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
        assert "tool_calls" not in answer["choices"][0]["message"]


def test_a_tool_whose_schema_cannot_be_kept_to_is_a_400_with_its_name(fleet: tuple[Stack, list[Process]]) -> None:
    """Where a call is required; else nothing is asked of the schema."""
    bad: dict[str, Any] = {"name": "odd", "parameters": {"properties": {"a": {"not": {}}}}}
    with (
        fleet[0].client(default_model="mock") as client,
        pytest.raises(RequestError, match=r"odd: .*/properties/a/not"),
    ):
        client.infer(messages=ASK, tools=[bad], tool_choice="required")


def taken_apart(pieces: list[str]) -> list[Delta]:
    """Read an answer as every edge does."""
    parser = AnswerParser(["weather", "time"])
    return [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()


def test_a_call_outlives_its_node_at_the_exact_place(fleet: tuple[Stack, list[Process]]) -> None:
    """Cut in the middle of its arguments, by `kill -9`."""
    stack = fleet[0]
    with stack.client(default_model="mock") as client:
        whole = client.infer(messages=ASK, tools=[TOOL, TIME])
        with client.stream(messages=ASK, tools=[TOOL, TIME]) as stream:
            texts = list[str]()
            while len("".join(texts)) < 100:
                texts.append(next(stream).text)
            serving = [node.node_id for node in client.status().nodes if node.in_flight]
            stack.node(serving[0]).kill()
            texts += [chunk.text for chunk in stream]
    stack.again(stack.node(serving[0]))
    stack.wait_for_nodes(2)

    assert "".join(texts) == whole.text == CALLED
    calls = [delta for delta in taken_apart(texts) if isinstance(delta, CalledTool)]
    assert calls == [delta for delta in taken_apart([whole.text]) if isinstance(delta, CalledTool)]
    assert len(calls) == 2


def test_a_stream_of_calls_goes_on_at_another_bridge(fleet: tuple[Stack, list[Process]]) -> None:
    """From any event on: what was read before and what comes then is the undisturbed stream, ids included."""
    body = {"model": "mock", "messages": ASK, "tools": [TOOL, TIME], "stream": True}
    key = {"idempotency-key": "calls"}
    events = events_of(fleet[1][0], body, key)
    ids = [event.partition("\n")[0].removeprefix("id: ") for event in events if event.startswith("id: ")]

    assert sum("tool_calls" in event for event in events) == 3
    for id_ in ids:
        at = next(place for place, event in enumerate(events) if event.startswith(f"id: {id_}\n"))
        rest = events_of(fleet[1][1], body, {**key, "last-event-id": id_})
        assert list(map(unnumbered, rest)) == list(map(unnumbered, events[at + 1 :]))


def test_a_stream_of_calls_goes_on_at_another_bridge_after_its_node_was_killed(
    fleet: tuple[Stack, list[Process]],
) -> None:
    """In the middle of a call; what comes then is the rest of the undisturbed stream."""
    stack, bridges = fleet
    body = {"model": "mock", "messages": ASK, "tools": [TOOL, TIME], "stream": True}
    undisturbed = events_of(bridges[0], body, {"idempotency-key": "undisturbed"})
    key = {"idempotency-key": "killed"}
    with asked(bridges[0], "POST", "/v1/chat/completions", body, key) as answer:
        with stack.client() as client:
            serving = next((node.node_id for node in client.status().nodes if node.in_flight), "node-0")
        contents = ((event.id, event.data["choices"][0]["delta"].get("content")) for event in events_in(answer))
        last = next(id_ for id_, content in contents if (content or "").endswith("."))  # tokens may come together
        stack.node(serving).kill()
    rest = events_of(bridges[1], body, {**key, "last-event-id": last})
    stack.again(stack.node(serving))
    stack.wait_for_nodes(2)

    assert sum("tool_calls" in event for event in rest) == 3
    assert [nameless(event) for event in rest] == [nameless(event) for event in undisturbed[-len(rest) :]]


def nameless(event: str) -> str:
    """Leave out what is made of the name of a request: its id, and those of its calls."""
    return re.sub('"id":"[^"]*"', "", unnumbered(event))


def unnumbered(event: str) -> str:
    """Leave out the id of an event: it counts the tokens that came, and some may have come together."""
    return re.sub("^id: .*\n", "", event)


def events_of(bridge: Process, body: dict[str, Any], headers: dict[str, str]) -> list[str]:
    """Read the events of a stream; when it was begun may differ."""
    with asked(bridge, "POST", "/v1/chat/completions", body, headers) as answer:
        text = re.sub('"created":[0-9]+', "", answer.read().decode())
    return [event for event in text.split("\n\n") if event and not event.startswith(":")]


def test_a_shell_calls_a_tool_and_tells_what_it_returned(fleet: tuple[Stack, list[Process]], tmp_path: Path) -> None:
    """`zmqrt infer` shows a call as a line of JSON; `zmqrt chat` reads what it came to, and goes on."""
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([TOOL, TIME["function"]]))
    words = ("--broker", fleet[0].clients, "-m", "mock", "--tools", str(file))
    asking = zmqrt("infer", *words, "Rain?")
    told = json.loads(zmqrt("infer", *words, "--json", "Rain?").stdout)
    forced = json.loads(zmqrt("infer", *words, "--tool-choice", "time", "-n", "2000", "Rain?").stdout)
    talking = zmqrt("chat", *words, given="Rain?\ndry\nnoon\n/exit\n")

    calls: list[dict[str, Any]] = [
        {"name": "weather", "arguments": {"city": "Zürich"}},
        {"name": "time", "arguments": {}},
    ]
    assert (asking.returncode, asking.stderr) == (0, "Where?\n")
    assert asking.stdout.splitlines() == ["One moment.", *(json.dumps(call, ensure_ascii=False) for call in calls)]
    assert (told["content"], told["reasoning"], told["tool_calls"]) == ("One moment.", "Where?", calls)
    assert forced["name"] == "time"
    assert talking.stdout.splitlines() == [*asking.stdout.splitlines(), "No rain in Zürich."]
