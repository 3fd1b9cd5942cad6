"""Anthropic's own client, as it is, against a real fleet; and its streams, which go on after a cut and a death."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Generator
from typing import Any

import pytest

from support.http import Event, answer_of, asked, events_of
from support.lazily import lazily
from support.stack import Process, Stack, eventually, running

is_installed = importlib.util.find_spec("anthropic") is not None
anthropic: Any = lazily("anthropic") if is_installed else None
needs_sdk = pytest.mark.skipif(not is_installed, reason="the anthropic package is not installed")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ASK: dict[str, Any] = {"model": "mock", "max_tokens": 16, "messages": [{"role": "user", "content": "hello"}]}
SEED: dict[str, Any] = {"extra_body": {"seed": 7}}
WORKER = ("--engine-opt", "step_ms=20,eos=never,fail_on_prompt=sulk", "--devices", "0", "--max-model-len", "2000")


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, Process, Process]]:
    """Two nodes, and two bridges to them."""
    with running(nodes=2, worker=WORKER) as stack:
        yield stack, stack.bridge(), stack.bridge()


def client_of(bridge: Process, **options: Any) -> Any:
    """Make a client as its users do; its base URL has no /v1."""
    return anthropic.Anthropic(base_url=bridge.endpoints["http"], api_key=options.pop("api_key", "none"), **options)


@pytest.fixture(scope="module")
def client(fleet: tuple[Stack, Process, Process]) -> Generator[Any]:
    """Make a client of the fleet."""
    with client_of(fleet[1]) as made:
        yield made


# --- what it can do --------------------------------------------------------------------------------------------------


@needs_sdk
def test_a_message(client: Any) -> None:
    """Whole, and the same again for the same seed; counted before it is asked for."""
    first, second = (client.messages.create(**ASK, **SEED) for _ in range(2))
    counted = client.messages.count_tokens(model="mock", messages=ASK["messages"])

    assert (first.type, first.role, first.model) == ("message", "assistant", "mock")
    assert [block.type for block in first.content] == ["text"]
    assert (first.stop_reason, first.stop_sequence) == ("max_tokens", None)
    assert (first.usage.output_tokens, first.usage.input_tokens) == (16, counted.input_tokens)
    assert second.content == first.content
    assert first.id.startswith("msg_")
    raw = client.messages.with_raw_response.create(**ASK, extra_headers={"X-Request-Id": "mine-1"})
    assert raw.headers["request-id"] == raw.headers["x-request-id"] == "mine-1"


@needs_sdk
def test_a_streamed_message_is_the_same_in_the_order_of_the_api(client: Any) -> None:
    """Event by event, and as the client's own helper folds it."""
    whole = client.messages.create(**ASK, **SEED)
    types = [event.type for event in client.messages.create(**ASK, **SEED, stream=True)]
    with client.messages.stream(**ASK, **SEED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()

    deltas = types.count("content_block_delta")
    assert types == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert text == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)


@needs_sdk
def test_a_stop_sequence_ends_it_and_is_told(client: Any) -> None:
    """Of several the one that came, whole and streamed; it is no part of the text."""
    text = client.messages.create(**ASK, **SEED).content[0].text
    stop = text[5:7]
    given = {"stop_sequences": ["never", stop], **SEED}
    answer = client.messages.create(**ASK, **given)
    with client.messages.stream(**ASK, **given) as stream:
        final = stream.get_final_message()

    for one in (answer, final):
        assert (one.stop_reason, one.stop_sequence) == ("stop_sequence", stop)
        assert one.content[0].text == text[: text.index(stop)]


@needs_sdk
def test_a_system_prompt_stands_beside_the_turns_or_among_them(client: Any) -> None:
    """As a text, as blocks, and as a turn: the same prompt."""
    turns = ASK["messages"]
    beside = client.messages.count_tokens(model="mock", messages=turns, system="Be brief.")
    blocks = client.messages.count_tokens(
        model="mock",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        system=[
            {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "brief."},
        ],
    )
    among = client.messages.count_tokens(model="mock", messages=[{"role": "system", "content": "Be brief."}, *turns])
    without = client.messages.count_tokens(model="mock", messages=turns)

    assert beside == blocks == among
    assert beside.input_tokens > without.input_tokens


@needs_sdk
def test_an_answer_comes_back_as_a_turn(client: Any) -> None:
    """As the object that the client got."""
    answer = client.messages.create(**ASK, **SEED)
    turns = [*ASK["messages"], answer.to_param(), {"role": "user", "content": "and?"}]

    assert client.messages.create(**{**ASK, "messages": turns}).usage.input_tokens > answer.usage.input_tokens


@needs_sdk
def test_an_answer_that_has_begun_is_gone_on_with(client: Any) -> None:
    """Its beginning is the end of the prompt, with nothing behind it."""
    turns = [*ASK["messages"], {"role": "assistant", "content": "I say"}]
    begun = client.messages.count_tokens(model="mock", messages=turns)
    more = client.messages.count_tokens(model="mock", messages=[*turns[:1], {**turns[1], "content": "I say:"}])

    assert client.messages.create(**{**ASK, "messages": turns}).usage.input_tokens == begun.input_tokens
    assert more.input_tokens == begun.input_tokens + 1


@needs_sdk
def test_an_answer_keeps_to_a_schema(client: Any) -> None:
    """As on the other paths."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    answer = client.messages.create(**{**ASK, "max_tokens": 100}, output_config=config)

    assert json.loads(answer.content[0].text)["a"] in ("x", "y")
    assert answer.stop_reason == "end_turn"


TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "Tell the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Bonn", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@needs_sdk
def test_a_tool_is_called_and_what_it_came_to_comes_back(client: Any) -> None:
    """Whole and streamed the same call; its answer is a turn of the next request."""
    ask = {**ASK, "max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "any"}, **SEED}
    answer = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    turns = [*ASK["messages"], answer.to_param(), {"role": "user", "content": [result]}]
    last = client.messages.create(**{**ASK, "messages": turns, "tools": [TOOL]})

    assert (answer.stop_reason, call.name) == ("tool_use", "weather")
    assert call.input["city"] in ("Bonn", "Rome")
    assert [(block.type, block.input) for block in streamed.content] == [("tool_use", call.input)]
    assert last.usage.input_tokens > answer.usage.input_tokens


# --- how it fails ----------------------------------------------------------------------------------------------------


@needs_sdk
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[0\].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"effort": "max"}}, "output_config.effort"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": "x"}]}]},
            r"messages\[0\].content\[0\]",
        ),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "prompt is too long"),
        ({"model": "mock-embed"}, "mock-embed"),
    ],
)
def test_what_cannot_be_is_a_bad_request_that_names_it(client: Any, options: dict[str, Any], words: str) -> None:
    """Before anything runs, streamed or not."""
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match=words) as caught:
            client.messages.create(**{**ASK, **options}, stream=stream)

        assert caught.value.body["error"]["type"] == "invalid_request_error"
        assert caught.value.request_id == caught.value.body["request_id"]


@needs_sdk
def test_failures_are_the_exceptions_of_the_client(fleet: tuple[Stack, Process, Process], client: Any) -> None:
    """No such model, a model that raises (which is not asked again); and no key where there are keys."""
    stack = fleet[0]
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**ASK, "model": "claude-9"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.InternalServerError) as raised:
        client.messages.create(**{**ASK, "messages": [{"role": "user", "content": "sulk"}]})
    assert raised.value.body["error"]["type"] == "api_error"
    assert raised.value.response.headers["x-should-retry"] == "false"

    guarded = stack.bridge("--api-keys", "acme:s3cret")
    with client_of(guarded, api_key="wrong") as stranger, pytest.raises(anthropic.AuthenticationError) as refused:
        stranger.messages.create(**ASK)
    assert refused.value.body["error"]["type"] == "authentication_error"
    with client_of(guarded, api_key="s3cret") as friend:
        assert friend.messages.create(**ASK).content


@needs_sdk
def test_a_stream_that_is_closed_frees_the_slot(fleet: tuple[Stack, Process, Process], client: Any) -> None:
    """At once, not at its end."""
    stack = fleet[0]
    with client.messages.stream(**{**ASK, "max_tokens": 1900}) as stream:
        next(iter(stream.text_stream))
        eventually(lambda: stack.status().running == 1, what="a running request")

    eventually(lambda: stack.status().running == 0, within_s=5, what="a free slot")


@needs_sdk
def test_a_stream_that_fails_in_the_middle_ends_with_an_error() -> None:
    """Which the client raises."""
    with running(worker=("--engine-opt", "step_ms=50,eos=never")) as stack:
        bridge = stack.bridge("--request-timeout", "1s")  # so long a stream may stand still
        with client_of(bridge, max_retries=0) as client:
            stream = client.messages.create(**{**ASK, "max_tokens": 1000}, stream=True)
            got = [next(iter(stream)) for _ in range(4)]
            stack.node("node-0").kill()
            with pytest.raises(anthropic.APIStatusError) as caught:
                got.extend(stream)

    assert caught.value.body["error"]["type"] == "timeout_error"
    assert got[0].type == "message_start"


# --- and after a cut -------------------------------------------------------------------------------------------------


def read(bridge: Process, key: str, *, deltas: int = 1000, last_id: str = "") -> list[Event]:
    """Read events of a stream up to so many deltas, then leave."""
    headers = {"idempotency-key": key, **({"last-event-id": last_id} if last_id else {})}
    found: list[Event] = []
    with asked(bridge, "POST", "/v1/messages", {**ASK, "max_tokens": 40, "stream": True}, headers) as answer:
        assert answer.status == 200, answer.read()
        for event in events_of(answer):
            found.append(event)
            if sum(one.name == "content_block_delta" for one in found) == deltas:
                break
    return found


def text_of(events: list[Event]) -> str:
    """Join the deltas."""
    return "".join(event.data["delta"]["text"] for event in events if event.name == "content_block_delta")


def test_a_stream_goes_on_elsewhere_after_the_death_of_its_node(fleet: tuple[Stack, Process, Process]) -> None:
    """Through the other bridge, and after each of its events: what comes is what had not come, once."""
    stack, one, other = fleet
    first = read(one, "killed", deltas=5)
    busy = eventually(lambda: [node for node in stack.status().nodes if node.in_flight], what="who runs it")
    process = stack.node(busy[0].node_id)
    process.kill()
    rest = read(other, "killed", last_id=first[-1].id)
    stack.again(process)
    stack.wait_for_nodes(2)
    whole = read(other, "killed")

    assert [event.name for event in whole[:4]] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
    ]
    assert text_of(first) + text_of(rest) == text_of(whole)
    assert [event.name for event in rest[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert rest[-3:] == whole[-3:]
    assert "message_start" not in [event.name for event in rest]
    had = ""
    for event in whole:
        had += text_of([event])
        if event.id:
            assert had + text_of(read(one, "killed", last_id=event.id)) == text_of(whole)


def test_errors_have_the_shape_of_this_api_alone(fleet: tuple[Stack, Process, Process]) -> None:
    """Also for methods that it has not; a wrong base URL is told."""
    bridge = fleet[1]
    status, told, headers = answer_of(bridge, "GET", "/v1/messages")
    assert (status, told["type"], told["error"]["type"]) == (405, "error", "invalid_request_error")
    assert headers["request-id"] == told["request_id"]

    status, told, _ = answer_of(bridge, "POST", "/v1/v1/messages", ASK)
    assert status == 404
    assert f"is {bridge.endpoints['http']};" in told["detail"]
