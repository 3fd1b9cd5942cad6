"""Answers that keep to a schema, from a real fleet: natively, over HTTP, in a shell, and over the death of a node."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from support.cli import zmqrt
from support.http import answer_of
from support.lazily import lazily
from support.stack import Process, Stack, running
from zmqrt.client import RequestError

openai = lazily("openai")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


class Person(msgspec.Struct):
    """What is asked for."""

    name: str
    age: int
    tags: list[str]


class Place(BaseModel):
    """The same in pydantic's words."""

    city: str
    capital: bool


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, Process]]:
    """Two nodes and a bridge."""
    with running(nodes=2, worker=("--engine-opt", "step_ms=5", "--devices", "0")) as stack:
        yield stack, stack.bridge()


def test_a_type_a_dict_a_text_a_regex_and_a_grammar(fleet: tuple[Stack, Process]) -> None:
    """Each says what the answer looks like."""
    described = msgspec.json.schema(Person)
    with fleet[0].client(default_model="mock") as client:
        texts = [client.infer("who?", schema=one, seed=1).text for one in (Person, described, json.dumps(described))]
        place = client.infer("where?", schema=Place, seed=2).text
        number = client.infer("how many?", regex="[1-9][0-9]{2}", seed=3).text
        mood = client.infer("how?", lark='start: "fine" | "not so well"', seed=4).text

    assert texts[0] == texts[1] == texts[2]
    assert isinstance(msgspec.json.decode(texts[0], type=Person), Person)
    assert isinstance(Place.model_validate_json(place).capital, bool)
    assert re.fullmatch("[1-9][0-9]{2}", number)
    assert mood in {"fine", "not so well"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schema": {"not": {}}}, r"json_schema: /not"),
        ({"schema": "{"}, "it is no JSON"),
        ({"schema": 5}, "schema: int says no JSON Schema"),
        ({"schema": {}, "regex": "a"}, "schema and regex"),
        ({"regex": "a", "min_tokens": 3}, "min_tokens: "),
        ({"regex": "[a&&b]"}, "cannot be kept to"),
    ],
)
def test_what_cannot_be_kept_to_is_a_400_that_says_where(
    fleet: tuple[Stack, Process], options: dict[str, Any], words: str
) -> None:
    """Before a node has it, or by the node."""
    with fleet[0].client(default_model="mock") as client, pytest.raises(RequestError, match=words) as caught:
        client.infer("who?", **options)

    assert caught.value.code == 400


def test_a_schema_answer_outlives_its_node_at_the_exact_token(fleet: tuple[Stack, Process]) -> None:
    """The rest keeps to the schema behind what was delivered: the answer is that of an undisturbed request."""
    stack = fleet[0]
    asked_for: dict[str, Any] = {"schema": {"type": "array", "items": {"type": "string"}, "minItems": 9}, "seed": 11}
    with stack.client(default_model="mock") as client:
        whole = client.infer("which?", max_tokens=2000, **asked_for)
        with client.stream("which?", max_tokens=2000, **asked_for) as stream:
            chunks = [next(stream) for _ in range(9)]
            serving = [node.node_id for node in client.status().nodes if node.in_flight]
            stack.node(serving[0]).kill()
            chunks += stream
        resumes = client.status().counters["resumes"]
    stack.again(stack.node(serving[0]))
    stack.wait_for_nodes(2)

    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len(json.loads(whole.text)) >= 9
    assert resumes >= 1


def test_openai_s_own_client_parses_what_it_asked_for(fleet: tuple[Stack, Process]) -> None:
    """By `parse`, as its users do; streamed as well."""
    messages = [{"role": "user", "content": "where?"}]
    with openai.OpenAI(base_url=f"{fleet[1].endpoints['http']}/v1", api_key="none") as client:
        parsed = client.chat.completions.parse(model="mock", messages=messages, response_format=Place, seed=5)
        stream = client.chat.completions.create(
            model="mock",
            messages=messages,
            response_format={"type": "json_object"},
            seed=6,
            stream=True,
            max_tokens=900,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert isinstance(parsed.choices[0].message.parsed, Place)
    assert parsed.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[ab]{4}"}}, "[ab]{4}"),
        ({"structured_outputs": {"choice": ["left", "right (almost)"]}}, r"left|right \(almost\)"),
        ({"guided_regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_choice": [""]}, ""),
        ({"guided_json": {"const": 1}}, "1"),
        ({"guided_grammar": 'start: "x" "y"+ "z"'}, "xy+z"),
        ({"response_format": {"type": "json_object", "schema": {"const": {}}}}, r"\{\}"),
        ({"format": {"enum": ["a", "b"]}}, '"[ab]"'),
        ({"regex": "q+r"}, "q+r"),
    ],
)
def test_what_other_servers_call_it_works_too(
    fleet: tuple[Stack, Process], fields: dict[str, Any], pattern: str
) -> None:
    """VLLM, SGLang, llama.cpp, Ollama."""
    body = {"model": "mock", "messages": [{"role": "user", "content": "?"}], "seed": 7, "max_tokens": 300, **fields}
    status, answer, _ = answer_of(fleet[1], "POST", "/v1/chat/completions", body)

    assert status == 200
    assert re.fullmatch(pattern, answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"guided_json": '"' + "x" * 300_000}, "guided_json"),
    ],
)
def test_what_says_no_grammar_is_a_400_that_names_the_parameter(
    fleet: tuple[Stack, Process], fields: dict[str, Any], param: str
) -> None:
    """As OpenAI's clients read it."""
    body = {"model": "mock", "messages": [{"role": "user", "content": "?"}], **fields}
    status, answer, _ = answer_of(fleet[1], "POST", "/v1/chat/completions", body)

    assert (status, answer["error"]["param"]) == (400, param)


def test_a_shell_asks_for_json(fleet: tuple[Stack, Process], tmp_path: Path) -> None:
    """`--schema FILE`, and a word about a file that is none, and about an answer that is half."""
    file = tmp_path / "person.json"
    file.write_bytes(msgspec.json.encode(msgspec.json.schema(Person)))
    where = ("--broker", fleet[0].clients, "--model", "mock", "--seed", "1")  # chance may draw what is cut off
    done = zmqrt("infer", "who?", "--schema", str(file), *where)
    talked = zmqrt("chat", "--schema", str(file), *where, given="who?\n")
    cut = ("infer", "who?", "--schema", str(file), *where, "-n", "2")
    halves = [zmqrt(*cut, how) for how in ("--stream", "--no-stream")]
    missing = zmqrt("infer", "who?", "--schema", str(tmp_path / "no.json"), "--broker", fleet[0].clients)

    assert isinstance(msgspec.json.decode(done.stdout, type=Person), Person)
    assert isinstance(msgspec.json.decode(talked.stdout[talked.stdout.index("{") :], type=Person), Person)
    for half in halves:
        assert half.returncode == 1
        assert "cut off after 2 tokens" in half.stderr
    assert missing.returncode == 2
    assert "--schema" in missing.stderr
    assert "No such file" in missing.stderr
