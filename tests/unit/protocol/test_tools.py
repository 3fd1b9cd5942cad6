"""Tools in the body of a request: what cannot be meant is refused, and old nodes still take what they know."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from zmqrt.protocol import tasks
from zmqrt.protocol.errors import RequestError

TALK = [{"role": "user", "content": "?"}]
TOOL = {"name": "f", "parameters": '{"type":"object"}'}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [TOOL, TOOL]}, "two of them have one name"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [TOOL], "tool_name": "g", "tool_choice": "required"}, '"g" is none of the tools'),
        ({"tools": [TOOL], "tool_name": "f"}, "tool_choice is not required"),
        ({"tools": [TOOL], "messages": None, "prompt": "?"}, "send messages"),
        ({"tools": [TOOL], "grammar": {"kind": "regex", "text": "a"}}, "leave the tools out"),
        ({"tools": [TOOL], "tool_choice": "required", "min_tokens": 2}, "min_tokens"),
        ({"tools": [{"name": "f", "parameters": "{"}]}, "parameters"),
        ({"tools": [{"name": "f", "parameters": "[]"}]}, "parameters"),
        ({"tools": [{"name": "f", "parameters": "[" * 100_000}]}, "parameters"),
        ({"tools": [{"name": ""}]}, "tools"),
        ({"tools": [{"name": f"f{n}"} for n in range(129)]}, "tools"),
        ({"tool_choice": "always"}, "tool_choice"),
    ],
)
def test_what_cannot_be_meant_is_a_400(fields: dict[str, Any], words: str) -> None:
    """With its name."""
    body = msgspec.msgpack.encode({"messages": TALK, **fields})
    with pytest.raises(RequestError, match=words) as caught:
        tasks.decode_task(body)

    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, None),
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "required"}, "grammar,tools"),
        ({"tools": [TOOL], "tool_choice": "none", "grammar": {"kind": "regex", "text": "a"}}, "grammar,tools"),
        ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "x"}]}, "tools"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "x", "name": "f"}]}]}, "tools"),
    ],
)
def test_a_request_says_that_it_needs_a_node_that_knows_tools(fields: dict[str, Any], needs: str | None) -> None:
    """Only where it has some."""
    task = tasks.decode_task(msgspec.msgpack.encode({"messages": TALK, **fields}))

    assert tasks.needs_of(task) == needs


def test_a_request_without_tools_is_packed_as_before() -> None:
    """A node that knows none takes it."""
    task = tasks.Generate(messages=[tasks.ChatMessage(role="user", content="?")])

    assert tasks.unpack_map(tasks.encode(task)) == {"task": "generate", "messages": TALK}
