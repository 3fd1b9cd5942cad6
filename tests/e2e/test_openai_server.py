"""Nodes in front of a server that speaks OpenAI's API: it is killed, comes back, is busy, breaks off."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from support.http import answer_of, asked, events_of
from support.openai_server import MODEL, OpenAIServer, answer, chat_answer, serving
from support.stack import Process, Stack, eventually
from zmqrt.client import BadRequestError, Handle, RequestError, Result, WorkerLostError
from zmqrt.protocol.errors import ErrorKind

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
IMPATIENT = ("--heartbeat-interval", "0.5", "--node-eviction-timeout", "1.5")
STREAMS = 200
WORDS = 12


def node_before(stack: Stack, server: OpenAIServer, *words: str, node_id: str = "") -> Process:
    """Start a node in front of a server."""
    options = ("--engine-opt", f"url={server.url},probe_s=0.1", *words)
    return stack.worker(*options, engine="openai", node_id=node_id)


def ask_http(bridge: Process, prompt: str = "hi") -> int:
    """Ask through the bridge; return the status."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
    return answer_of(bridge, "POST", "/v1/chat/completions", body)[0]


def read(handle: Handle[Result]) -> tuple[str, RequestError | None]:
    """Read a stream; return its text, and how it failed."""
    text = ""
    try:
        while (chunk := handle.next_chunk()) is not None:
            text += chunk.text
    except RequestError as error:
        return text, error
    return text, None


def test_two_hundred_streams_outlive_their_server() -> None:
    """A third is cancelled; the server is killed and started again: 503 meanwhile, then all goes on by itself."""
    with serving("--owner", "vllm") as server, Stack() as stack:
        server.control(hold_after=3)
        stack.broker(*IMPATIENT)
        node = node_before(stack, server, "--slots", str(STREAMS), "--node-max-capacity", str(STREAMS))
        bridge = stack.bridge()
        stack.wait_for_nodes(1)
        with stack.client() as client:
            prompts = [f"tale {number}" for number in range(STREAMS)]
            handles = [
                client.submit(prompt, stream=True, max_tokens=WORDS, temperature=0.0, timeout_s=60)
                for prompt in prompts
            ]
            begun = [handle.next_chunk() for handle in handles]
            for handle in handles[::3]:
                handle.cancel()
            cancelled = len(handles[::3])
            eventually(lambda: server.seen().left == cancelled, what=f"{cancelled} closed connections")
            server.kill()
            eventually(lambda: not stack.status().services[0].capacity, what="news of the loss")
            assert ask_http(bridge) == 503
            server.start()

            for number, (handle, first) in enumerate(zip(handles, begun, strict=True)):
                if number % 3:
                    assert first is not None
                    rest, error = read(handle)
                    assert error is None
                    assert first.text + rest == chat_answer(prompts[number], WORDS)
                    assert handle.result().usage.completion_tokens == WORDS
            assert ask_http(bridge) == 200
            status = stack.status()

        assert node.popen.poll() is None
        assert [device.restarts for node in status.nodes for device in node.devices] == [1]
        assert status.counters["resumes"] > 0
        assert status.counters["failed"] == 1  # the 503 alone


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, OpenAIServer, OpenAIServer]]:
    """Two nodes, each in front of a server of its own that cannot go on with chats."""
    with serving("--context", "300") as one, serving("--context", "300") as other, Stack() as stack:
        stack.broker()
        for number, server in enumerate((one, other)):
            node_before(stack, server, node_id=f"node-{number}")
        stack.wait_for_nodes(2)
        yield stack, one, other


@pytest.fixture
def servers(fleet: tuple[Stack, OpenAIServer, OpenAIServer]) -> tuple[Stack, OpenAIServer, OpenAIServer]:
    """The same, well again."""
    for server in fleet[1:]:
        server.control()
    return fleet


@pytest.mark.slow
def test_before_the_first_token_another_node_has_it(servers: tuple[Stack, OpenAIServer, OpenAIServer]) -> None:
    """One of two servers is always busy, and nobody's answer shows it."""
    stack, one, _ = servers
    one.control(busy=1000)
    with stack.client() as client:
        handles = [client.submit(f"n{number}", max_tokens=3, temperature=0.0) for number in range(10)]
        assert [handle.result().text for handle in handles] == [chat_answer(f"n{number}", 3) for number in range(10)]
    assert one.seen().posts > 0


@pytest.mark.slow
def test_after_the_first_token_it_goes_on_by_text_or_says_where_it_stopped(
    servers: tuple[Stack, OpenAIServer, OpenAIServer],
) -> None:
    """A completion goes on; a chat that no server here can go on with is 502, and its caller has what was delivered."""
    stack, one, other = servers
    for server in (one, other):
        server.control(break_after=3)
    with stack.client() as client:
        text = "".join(chunk.text for chunk in client.stream("Go: ", raw=True, max_tokens=9, temperature=0.0))
        assert text == answer("Go: ", 9)

        for server in (one, other):
            server.control(break_after=3)
        handle = client.submit("hi", stream=True, max_tokens=9, temperature=0.0)
        text, error = read(handle)
        assert isinstance(error, WorkerLostError)
        assert (error.kind, error.resume_n) == (ErrorKind.NOT_RESUMABLE, 3)
        assert text == chat_answer("hi", 3)

        whole = client.infer("hi", max_tokens=9, temperature=0.0)  # nobody has seen the beginning of a whole answer
        assert whole.text == chat_answer("hi", 9)


@pytest.mark.slow
def test_it_is_a_node_like_any_other(servers: tuple[Stack, OpenAIServer, OpenAIServer]) -> None:
    """Its model by the name that its server has for it, its context, its usage; unknown fields pass through."""
    stack, one, other = servers
    (service,) = [service for service in stack.status().services if service.is_listed]
    assert (service.service, service.task) == (MODEL, "generate")
    with stack.client() as client:
        result = client.infer("one two", max_tokens=4, model=MODEL, extra={"reasoning_effort": "low"})
        assert (result.finish_reason, result.model) == ("length", MODEL)
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (2, 4)
        assert "low" in [body.get("reasoning_effort") for server in (one, other) for body in server.seen().bodies]
        with pytest.raises(BadRequestError, match=r"unexpected fields: \['top_k'\]"):
            client.infer("hi", top_k=3)
        with pytest.raises(BadRequestError, match="logprobs"):
            client.infer("hi", logprobs=1)


@pytest.mark.slow
def test_what_the_bridge_does_not_know_reaches_the_server(
    servers: tuple[Stack, OpenAIServer, OpenAIServer],
) -> None:
    """An unknown field and an image, unchanged, since the model's nodes say that they pass things on."""
    stack, one, other = servers
    bridge = stack.bridge()
    parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    messages = [{"role": "user", "content": parts}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 2, "images": ["x"], "user": "me"}
    status, answered, _ = answer_of(bridge, "POST", "/v1/chat/completions", body)

    assert (status, answered["choices"][0]["finish_reason"]) == (200, "length")
    (seen,) = [found for server in (one, other) for found in server.seen().bodies if "images" in found]
    assert (seen["images"], seen["messages"], "user" in seen) == (["x"], messages, False)
    (listed,) = answer_of(bridge, "GET", "/v1/models")[1]["data"]
    assert listed["capabilities"] == ["extra"]
    assert answer_of(bridge, "POST", "/v1/chat/completions", {**body, "n": 99})[0] == 400


@pytest.mark.slow
def test_tools_thoughts_and_schemas_are_the_server_s(servers: tuple[Stack, OpenAIServer, OpenAIServer]) -> None:
    """Asked for unchanged, answered as its own clients would be, whole and streamed."""
    stack, one, other = servers
    bridge = stack.bridge()
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    call = {"index": 0, "id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city":'}}
    deltas: list[dict[str, object]] = [
        {"reasoning_content": "Hm"},
        {"reasoning_content": "."},
        {"content": "A moment."},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Bonn"}'}}]},
    ]
    script = [{"delta": delta} for delta in deltas] + [{"delta": {}, "finish_reason": "tool_calls"}]
    for server in (one, other):
        server.control(script=script)
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Rain?"}], "tools": [tool]}
    body |= {"tool_choice": "required", "response_format": schema}
    status, answered, _ = answer_of(bridge, "POST", "/v1/chat/completions", body)
    with asked(bridge, "POST", "/v1/chat/completions", {**body, "stream": True}) as answer:
        events = events_of(answer)
        streamed = list[dict[str, Any]]()
        while not streamed or streamed[-1]["finish_reason"] is None:
            streamed.append(next(events).data["choices"][0])
    seen = [found for server in (one, other) for found in server.seen().bodies if "tools" in found]
    for server in (one, other):
        server.control()

    assert status == 200, answered
    choice = answered["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "A moment.")
    assert choice["message"]["reasoning_content"] == "Hm."
    assert [one["function"] for one in choice["message"]["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city":"Bonn"}'}
    ]
    assert answered["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert streamed[-1]["finish_reason"] == "tool_calls"
    assert "".join(one["delta"].get("content") or "" for one in streamed) == "A moment."
    assert sum("tool_calls" in one["delta"] for one in streamed) == 1
    assert [(one["tools"], one["tool_choice"], one["response_format"]) for one in seen] == [
        ([tool], "required", schema)
    ] * 2
