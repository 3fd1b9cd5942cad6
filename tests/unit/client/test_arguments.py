"""Whatever a caller gives a verb: what cannot be meant is refused in the caller's own thread, by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from zmqrt.client import AsyncClient, Client, calls, queries
from zmqrt.client.config import ClientConfig
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import BadRequestError, ConfigurationError, NotFoundError, TooLargeError

CONFIG = ClientConfig(endpoints=("tcp://a:1",))
HALF = "a\ud83d"
BYTE = "caf\udce9"
"""What `$'caf\\xe9'` becomes on a command line."""
HUGE = 2**80


def _generate(**options: Any) -> calls.Call:
    prompt = options.pop("prompt", None if options.keys() & {"messages", "token_ids"} else "hi")
    return calls.generate(CONFIG, prompt, stream=False, options=options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def _embed(given: Any, **options: Any) -> calls.Call:
    return calls.embed(CONFIG, given, dimensions=options.pop("dimensions", None), truncate=False, options=options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def _task(task: Any, rid: Any = None) -> calls.Call:
    return calls.make_call(CONFIG, task, stream=False, rid=rid)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt": HALF}, "prompt"),
        ({"prompt": BYTE}, "prompt"),
        ({"prompt": b"bytes"}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"messages": [{"role": "user", "content": HALF}]}, r"messages\[0\].content"),
        ({"messages": [{"role": HALF, "content": ""}]}, "role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": iter([])}, "messages"),
        ({"prompt": None}, "exactly one of"),
        ({"prompt": "hi", "token_ids": [1]}, "exactly one of"),
        ({"prompt": "hi", "messages": [{"role": "user", "content": "x"}]}, "exactly one of"),
        ({"token_ids": [HUGE]}, "token_ids"),
        ({"token_ids": [math.nan]}, "token_ids"),
        ({"token_ids": b"\x01\x02"}, "token_ids"),
        ({"stop": [""]}, "stop"),
        ({"stop": HALF}, r"stop\[0\]"),
        ({"stop": ["x", BYTE]}, r"stop\[1\]"),
        ({"stop": 7}, "stop"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": 3.0}, "temperature"),
        ({"temprature": 1.0}, "temprature"),
        ({"top_p": math.inf}, "top_p"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": {HUGE: 1.0}}, "logit_bias"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": HUGE}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens"),
        ({"seed": HUGE}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -1}, "seed"),
        ({"logprobs": math.nan}, "logprobs"),
        ({"model": 5}, "model"),
        ({"model": b"m"}, "model"),
        ({"timeout_s": math.nan}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
        ({"timeout_s": "3"}, "timeout_s"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": 1e6}, "timeout_s"),
        ({"priority": HUGE}, "priority"),
        ({"priority": -101}, "priority"),
        ({"priority": "urgent"}, "priority"),
        ({"idempotent": "yes"}, "idempotent"),
        ({"request_id": HALF}, "request_id"),
        ({"request_id": "a\0b"}, "request_id"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "ä"}, "request_id"),
        ({"request_id": b"job"}, "request_id"),
        ({"traceparent": HALF}, "traceparent"),
        ({"traceparent": "x" * 300}, "traceparent"),
        ({"party": HALF}, "party"),
        ({"party": "x" * 300}, "party"),
        ({"total_s": math.nan}, "total_s"),
        ({"total_s": -1}, "total_s"),
        ({"retries": -1}, "retries"),
        ({"retries": math.nan}, "retries"),
    ],
)
def test_what_a_generation_cannot_mean_is_named(options: dict[str, Any], named: str) -> None:
    """The field stands in the error, and no other exception comes out."""
    with pytest.raises(BadRequestError, match=named):
        _generate(**options)


def test_what_no_frame_can_hold_is_too_large() -> None:
    """A broker would cut the connection for it."""
    with pytest.raises(TooLargeError, match="limit"):
        _generate(prompt="x" * (17 << 20))


@pytest.mark.parametrize("given", [HALF, ["ok", BYTE], b"bytes", 5, None, [], [[HUGE]], [math.nan], {"a": 1}])
def test_what_an_embedding_cannot_mean_is_named(given: Any) -> None:
    """As for a generation."""
    with pytest.raises(BadRequestError, match="input"):
        _embed(given)


@pytest.mark.parametrize("name", [HALF, BYTE, "a\0b", "a b", "x" * 500, "m\n"])
def test_no_model_can_be_called_that(name: str) -> None:
    """Said at once, in ASCII, so that the error itself can be printed anywhere."""
    with pytest.raises(NotFoundError, match="cannot be the name of a model") as refused:
        _generate(model=name)

    assert str(refused.value).isascii()
    with pytest.raises(NotFoundError):
        _embed("x", model=name)


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ("hi", "task"),
        (None, "task"),
        (tasks.Generate(prompt=5), "prompt"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (tasks.Generate(prompt=HALF), "prompt"),
        (tasks.Generate(prompt="x", max_tokens=HUGE), "max_tokens"),
        (tasks.Generate(prompt="x", max_tokens="9"), "max_tokens"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (tasks.Generate(prompt="x", min_tokens=object()), "min_tokens"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (tasks.Generate(prompt="x", temperature=math.nan), "temperature"),
        (tasks.Generate(), "exactly one of"),
        (tasks.Embed(input=object()), "input"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (tasks.Embed(input=HALF), "input"),
        (tasks.Embed(input="x", dimensions=-1), "dimensions"),
        (tasks.Rerank(query=HALF, documents=["a"]), "query"),
        (tasks.Rerank(query="q", documents=["a", HALF]), "documents"),
        (tasks.Rerank(query="q", documents=[]), "documents"),
        (tasks.Classify(input=[HALF]), "input"),
    ],
)
def test_a_task_that_nobody_has_checked_is_checked(task: Any, named: str) -> None:
    """Constructing a struct checks nothing, so `submit_task` does."""
    with pytest.raises(BadRequestError, match=named):
        _task(task)


@pytest.mark.parametrize("rid", [b"", b"short", b"x" * 17, "x" * 16, 5])
def test_a_rid_is_sixteen_bytes(rid: Any) -> None:
    """Anything else would be refused by the broker, together with its envelope."""
    with pytest.raises(BadRequestError, match="rid"):
        _task(tasks.Generate(prompt="x"), rid)


@pytest.mark.parametrize("value", [HALF, BYTE, b"job-7", 7, None, "", "x" * 300, ["job-7"], math.nan])
@pytest.mark.parametrize(("ask", "named"), [(queries.explain, "request"), (queries.drain, "node_id")])
def test_questions_are_about_names(ask: Callable[[Any], object], named: str, value: Any) -> None:
    """One that cannot travel is refused before anybody is asked."""
    with pytest.raises(BadRequestError, match=named):
        ask(value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"brokers": 5}, "brokers"),
        ({"brokers": None}, "brokers"),
        ({"brokers": b"tcp://127.0.0.1:1"}, "brokers"),
        ({"brokers": [5]}, "brokers"),
        ({"brokers": []}, "brokers"),
        ({"brokers": ""}, "1 to 16 brokers"),
        ({"brokers": "tcp://a"}, "not an endpoint"),
        ({"brokers": "tcp://a\0b:1"}, "not an endpoint"),
        ({"brokers": f"tcp://{HALF}:1"}, "not an endpoint"),
        ({"brokers": f"ipc:///tmp/{BYTE}"}, "not an endpoint"),
        ({"brokers": "tcp://a\nb:1"}, "not an endpoint"),
        ({"keys": 5}, "keys"),
        ({"keys": "a\0b"}, "keys"),
        ({"keys": HALF}, "keys"),
        ({"timeout_s": "30"}, "timeout_s"),
        ({"timeout_s": math.nan}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"timeout_s": None}, "timeout_s"),
        ({"connect_timeout_s": 0}, "connect_timeout_s"),
        ({"connect_timeout_s": math.inf}, "connect_timeout_s"),
        ({"default_model": HALF}, "default_model"),
        ({"default_model": 5}, "default_model"),
        ({"default_model": "a b"}, "default_model"),
        ({"name": HALF}, "name"),
        ({"name": 5}, "name"),
        ({"max_outstanding": math.nan}, "max_outstanding"),
        ({"max_outstanding": "4"}, "max_outstanding"),
        ({"max_outstanding": 5000}, "max_outstanding"),
        ({"max_outstanding": HUGE}, "max_outstanding"),
    ],
)
@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_client_is_refused_what_it_could_not_work_with(
    make: Callable[..., object], arguments: dict[str, Any], named: str
) -> None:
    """When it is made, not when its thread stumbles over it."""
    with pytest.raises(ConfigurationError, match=named) as refused:
        make(**arguments)

    assert str(refused.value).isascii()
