"""From a verb's arguments to a call: what is filled in, what is refused, and what a rid looks like."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.client import calls
from zmqrt.client.config import ClientConfig, read_endpoints
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import BadRequestError, NotFoundError
from zmqrt.protocol.priority import PriorityClass
from zmqrt.protocol.tasks import ChatMessage

CONFIG = ClientConfig(endpoints=("tcp://a:1",))


def generate(prompt: str | None = "hi", *, stream: bool = False, **options: Any) -> calls.Call:
    """Build a generation."""
    return calls.generate(CONFIG, prompt, stream=stream, options=options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_every_field_of_the_schema_is_an_option() -> None:
    """A field added to the task is missing in the verbs until it is added here too."""
    fields = {*tasks.Generate.__struct_fields__} - {"prompt", "grammar"} | {"schema", "regex", "lark"}

    assert fields == {*calls.GenerateOptions.__annotations__} - {*calls.CallOptions.__annotations__}


def test_options_become_the_task_and_the_header() -> None:
    """Each in its place."""
    call = generate(
        stream=True,
        model="toy",
        max_tokens=9,
        stop="END",
        logit_bias={5: -1.0},
        priority=3,
        timeout_s=2.5,
        request_id="job-7",
        traceparent="00-ab-cd-01",
    )

    assert tasks.decode_task(call.body) == tasks.Generate(prompt="hi", max_tokens=9, stop=["END"], logit_bias={5: -1.0})
    assert (call.service, call.task, call.priority, call.timeout_s, call.cost) == ("toy", "generate", 3, 2.5, 9)
    assert call.flags == m.STREAM | m.IDEMPOTENT | m.RESUMABLE
    assert call.request_id == "job-7"
    assert call.ext == {"request_id": "job-7", "traceparent": "00-ab-cd-01"}


def test_messages_may_be_maps_or_structs() -> None:
    """Both are one thing on the wire."""
    turns = [{"role": "system", "content": "be brief"}, ChatMessage(role="user", content="hi")]
    task = tasks.decode_task(generate(None, messages=turns).body)

    assert isinstance(task, tasks.Generate)
    assert task.messages == [ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="hi")]


def test_an_embedding_is_idempotent_but_not_resumable() -> None:
    """It has no prefix that could be brought along."""
    call = calls.embed(CONFIG, ["a", [1, 2]], dimensions=8, truncate=True, options={"model": "vec"})

    assert call.flags == m.IDEMPOTENT
    assert tasks.decode_task(call.body) == tasks.Embed(input=["a", [1, 2]], dimensions=8, truncate=True)


def test_reranking_and_classifying_are_calls_like_embedding() -> None:
    """Each with its task; which model can is left to the broker."""
    asked = calls.rerank(CONFIG, "q", ["a", "b"], truncate=True, options={"priority": 1})
    told = calls.classify(CONFIG, "a", truncate=False, options={"model": "labels"})

    assert (asked.flags, asked.service, asked.task, asked.ext["task"]) == (m.IDEMPOTENT, "", "rerank", "rerank")
    assert tasks.decode_task(asked.body) == tasks.Rerank(query="q", documents=["a", "b"], truncate=True)
    assert (told.service, told.task, tasks.decode_task(told.body)) == ("labels", "classify", tasks.Classify(input="a"))


def test_a_rid_is_a_uuid_7() -> None:
    """Sortable by time, and never the same twice."""
    rids = [calls.new_rid() for _ in range(1000)]
    one = uuid.UUID(bytes=rids[0])

    assert len(set(rids)) == 1000
    assert (one.version, one.variant) == (7, uuid.RFC_4122)
    assert abs(int.from_bytes(rids[0][:6], "big") / 1000 - time.time()) < 60
    assert calls.rid_of(one.hex) == calls.rid_of(str(one)) == rids[0]
    assert calls.rid_of("not one") is None


NAMES = st.sampled_from([*calls.GenerateOptions.__annotations__, *calls.CallOptions.__annotations__]) | st.text(
    max_size=5
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(SCALARS, SCALARS, max_size=2)


@given(st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=2), max_size=4))
def test_any_options_give_a_call_or_a_typed_error(options: dict[str, Any]) -> None:
    """Never another exception, never a body that cannot be read."""
    options.pop("stream", None)
    options.pop("prompt", None)
    try:
        call = generate(**options)
    except (BadRequestError, NotFoundError):
        return
    assert isinstance(tasks.decode_task(call.body), tasks.Generate)


@pytest.mark.parametrize(
    ("brokers", "endpoints"),
    [
        ("tcp://a:1", ("tcp://a:1",)),
        ("tcp://a:1, tcp://b:2", ("tcp://a:1", "tcp://b:2")),
        (["tcp://a:1", "ipc:///tmp/x"], ("tcp://a:1", "ipc:///tmp/x")),
    ],
)
def test_brokers_are_one_or_several(brokers: str | list[str], endpoints: tuple[str, ...]) -> None:
    """In one string or in a list."""
    assert read_endpoints(brokers) == endpoints


def test_how_a_conversation_is_rendered_is_a_map_or_a_struct() -> None:
    """Both are one thing on the wire, and need nodes that know it."""
    rendering = tasks.Rendering(kwargs={"enable_thinking": False})
    given = [generate(rendering=rendering), generate(rendering={"kwargs": {"enable_thinking": False}})]

    assert {call.ext["needs"] for call in given} == {"rendering"}
    for call in given:
        task = tasks.decode_task(call.body)
        assert isinstance(task, tasks.Generate)
        assert task.rendering == rendering


@pytest.mark.parametrize(("word", "number"), [("interactive", 10), ("default", 0), ("bulk", -10)])
def test_a_class_of_priority_is_a_word_for_a_number(word: PriorityClass, number: int) -> None:
    """Which travels as any other."""
    assert calls.generate(CONFIG, "x", stream=False, options={"priority": word}).priority == number
