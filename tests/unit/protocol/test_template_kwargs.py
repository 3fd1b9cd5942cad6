"""Values for chat templates: JSON, so many, so deep, under names that are not ours."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol import tasks
from zmqrt.protocol.errors import RequestError
from zmqrt.protocol.tasks import ChatMessage, Generate, Rendering
from zmqrt.protocol.template_kwargs import kwargs_fault

HI = [ChatMessage(role="user", content="hi")]


def deep(levels: int) -> object:
    """Nest lists."""
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"a b": 1}, '"a b" is no name'),
        ({"": 1}, "no name"),
        ({"x" * 65: 1}, "no name"),
        ({"messages": []}, "messages is not said here"),
        ({"raise_exception": 1}, "not said here"),
        ({"a": b"bytes"}, "JSON values are meant"),
        ({"a": [{"b": {1: 2}}]}, "the names in an object are texts"),
        ({"a": 2**64}, "too large"),
        ({"a": list(range(4096))}, "at most 4096 values"),
        ({"a": deep(16)}, "16 deep"),
        ({f"a{number}": 1 for number in range(65)}, "at most 64 names"),
    ],
)
def test_what_cannot_be_given_is_said_by_its_fault(kwargs: dict[str, Any], words: str) -> None:
    """And a task with it is refused before it is sent, and at its node."""
    assert words in kwargs_fault(kwargs)
    with pytest.raises(RequestError, match=r"rendering\.kwargs"):
        tasks.check_generate(Generate(messages=HI, rendering=Rendering(kwargs=kwargs)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_every_small_json_value_arrives_as_it_was_given(value: object) -> None:
    """Over the wire, which is MessagePack."""
    task = Generate(messages=HI, rendering=Rendering(kwargs={"a": value}))

    assert kwargs_fault({"a": value}) == ""
    assert tasks.decode_task(tasks.encode(task)) == task


def test_how_deep_it_may_be() -> None:
    """At the bound all is well."""
    assert kwargs_fault({"a": deep(15)}) == ""


@pytest.mark.parametrize(
    "task",
    [
        Generate(prompt="x", raw=True, rendering=Rendering()),
        Generate(token_ids=[1], rendering=Rendering()),
        Generate(prompt="x", rendering=Rendering(continue_final_message=True)),
    ],
)
def test_beside_what_no_template_sees_it_is_refused(task: Generate) -> None:
    """It would be forgotten in silence."""
    with pytest.raises(RequestError, match="rendering: "):
        tasks.check_generate(task)


def test_nodes_from_before_are_not_asked() -> None:
    """They would refuse the field; what says nothing needs nothing."""
    assert tasks.needs_of(Generate(messages=HI, rendering=Rendering())) == "rendering"
    assert tasks.needs_of(Generate(messages=HI)) is None
