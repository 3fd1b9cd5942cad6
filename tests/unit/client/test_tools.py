"""Tools as programs write them: in OpenAI's shape, or plain."""

from __future__ import annotations

from typing import Any, cast

import pytest

from zmqrt.client import calls
from zmqrt.client.config import ClientConfig
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import RequestError
from zmqrt.protocol.tasks import ChatMessage, Generate, Tool, ToolCall

CONFIG = ClientConfig(endpoints=("tcp://a:1",))
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PLAIN = {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}
TALK: list[Any] = [{"role": "user", "content": "?"}]


def made(messages: list[Any] = TALK, **options: Any) -> Generate:
    """Build a request and read its body as its node does."""
    given = cast("calls.GenerateOptions", {"messages": messages, **options})
    call = calls.generate(CONFIG, None, stream=False, options=given)
    task = tasks.decode_task(call.body)
    assert isinstance(task, Generate)
    return task


@pytest.mark.parametrize("tool", [PLAIN, {"type": "function", "function": {**PLAIN, "strict": True}}])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_and_a_choice_in_either_shape(tool: dict[str, Any], choice: Any) -> None:
    """The body is the same."""
    task = made(tools=[tool], tool_choice=choice)
    parameters = '{"type":"object","properties":{"city":{"type":"string"}}}'

    assert task.tools == [Tool(name="weather", description="Tells it.", parameters=parameters)]
    assert (task.tool_choice, task.tool_name) == ("required", None if choice == "required" else "weather")


def test_turns_with_calls_and_results_in_either_shape() -> None:
    """A call needs no words beside it."""
    inner = {"name": "weather", "arguments": "{}"}
    results = [{"role": "tool", "content": "Sun.", "tool_call_id": "c1"}]
    openai = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": inner}]}
    ]
    plain = [{"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **inner}]}]
    own = [ChatMessage(role="assistant", content="", tool_calls=[ToolCall(id="c1", name="weather")])]

    assert made([*TALK, *openai, *results]) == made([*TALK, *plain, *results]) == made([*TALK, *own, *results])


@pytest.mark.parametrize(
    "options",
    [
        {"tools": 5},
        {"tools": ["weather"]},
        {"tools": [{"name": "f", "parameters": {"a": {1, 2}.__iter__()}}]},
        {"tools": [PLAIN], "tool_choice": {"type": "function"}},
        {"tools": [PLAIN], "tool_choice": "weather"},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [5]}]},
    ],
)
def test_what_is_no_tool_is_a_400(options: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(RequestError) as caught:
        made(**options)

    assert caught.value.code == 400
