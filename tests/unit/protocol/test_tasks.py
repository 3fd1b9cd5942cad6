"""Bodies: what a task may say, and what is refused with the field named."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol import tasks
from zmqrt.protocol.errors import BadRequestError, RequestError


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "exactly one of prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "exactly one of prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "tempersture": 1}, "tempersture"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "temperature": 2.5}, "temperature"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "logit_bias": {1: 101.0}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"task": "embed", "input": []}, "input"),
        ({"task": "rerank", "query": "q"}, "documents"),
        ({"task": "rerank", "query": "q", "documents": []}, "documents"),
        ({"task": "rerank", "query": "q", "documents": ["a", 5]}, r"documents\[1\]"),
        ({"task": "rerank", "query": "q", "documents": ["a"], "top_n": 1}, "top_n"),
        ({"task": "classify"}, "input"),
        ({"task": "classify", "input": []}, "input"),
        ({"task": "classify", "input": [[1]]}, "input"),
        ({"task": "sing", "prompt": "a"}, 'task: one of generate, embed, rerank, classify is meant, not "sing"'),
        ({"task": ["embed"]}, "task: one of"),
        ({5: 6}, "unknown field"),
    ],
)
def test_a_wrong_task_is_refused_with_its_field(values: dict[Any, Any], named: str) -> None:
    """400, and the words name what is wrong."""
    with pytest.raises(BadRequestError, match=named):
        tasks.decode_task(msgpack.packb(values))


@pytest.mark.parametrize(
    "task",
    [
        tasks.Generate(prompt="hi"),
        tasks.Generate(token_ids=[1, 2], seed=2**63 - 1, logit_bias={7: -1.5}, stop=["\n"], logprobs=3),
        tasks.Generate(messages=[tasks.ChatMessage(role="user", content="")], temperature=0.0),
        tasks.Embed(input=["a", [1, 2]], truncate=True),
        tasks.Rerank(query="q", documents=["a", ""], truncate=True),
        tasks.Classify(input="a"),
        tasks.Classify(input=["a", "b"]),
    ],
)
def test_a_task_survives_the_wire(task: tasks.Task) -> None:
    """What is packed is what is read, and `msgpack` itself reads the same map."""
    body = tasks.encode(task)

    assert tasks.decode_task(body) == task
    assert tasks.unpack_map(body)["task"] == tasks.task_name(task)
    assert isinstance(msgpack.unpackb(body, strict_map_key=False), dict)


@given(st.binary(max_size=300))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """Nothing but a 400 comes out of foreign bytes."""
    try:
        tasks.decode_task(body)
    except BadRequestError as error:
        assert error.text


@pytest.mark.parametrize(
    "body", [b"\x81\xa6prompt" + b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b"\xc7\x01\x05x", b""]
)
def test_hostile_bodies_are_refused(body: bytes) -> None:
    """Depth, claimed sizes, extension types and emptiness are a 400."""
    with pytest.raises(BadRequestError):
        tasks.decode_task(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x"},
        {"task": "generate", "prompt": "x", "max_tokens": 5, "temperature": 1, "logit_bias": {7: -1.5}},
        {"task": "generate", "prompt": b"x"},
        {"task": "generate", "prompt": "x", "max_tokens": True},
        {"task": "generate", "prompt": "x", "max_tokens": 0},
        {"task": "generate", "prompt": "x", "temperature": float("nan")},
        {"task": "generate", "prompt": "x", "logit_bias": {"7": 1.0}},
        {"task": "generate", "prompt": "x", "no_such": 1},
        {"task": "generate", "prompt": "x", "extra": {"when": msgspec.msgpack.Ext(-1, bytes(4))}},
        {"task": "generate", "prompt": "x", "extra": {"what": msgspec.msgpack.Ext(5, b"x")}},
        {"task": "generate", "prompt": "x", "extra": {"what": [1, None, "x"]}},
        {"task": "generate", "prompt": "x", "rendering": {"kwargs": {"when": msgspec.msgpack.Ext(-1, bytes(4))}}},
        {"task": "generate", "messages": [{"role": "user", "content": "x"}], "stop": ["a"]},
        {"task": "generate", "messages": [{"role": "user"}]},
        {"task": "generate", "prompt": "x", "token_ids": [1]},
        {"task": "generate", "token_ids": [1, -1]},
        {"task": "generate", 7: 1},
        {"task": "sing"},
        {"task": 7},
        {"task": "embed", "input": ["a", [1, 2]], "truncate": True},
        {"task": "embed", "input": 7},
        {"task": "rerank", "query": "q", "documents": ["d"]},
        {"task": "classify", "input": "a"},
    ],
)
@pytest.mark.parametrize("tail", [b"", b"\xc0"])
def test_a_short_body_means_what_a_long_one_does(
    monkeypatch: pytest.MonkeyPatch, fields: dict[object, object], tail: bytes
) -> None:
    """It is read in one step: the same tasks come of it, and the same words."""

    def read() -> object:
        try:
            return repr(tasks.decode_task(body))
        except RequestError as error:
            return error.kind, error.text

    body = msgspec.msgpack.encode(fields) + tail
    at_once = read()
    monkeypatch.setattr(tasks, "_SHORT_BYTES", 0)

    assert at_once == read()
