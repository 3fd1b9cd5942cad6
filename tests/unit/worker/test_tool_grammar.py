"""An answer that must be a call of a tool is one, of a tool that there is, with arguments that fit."""

from __future__ import annotations

import json
import random
import time
from typing import Annotated, Literal

import msgspec
import pytest

from zmqrt.protocol.errors import RequestError
from zmqrt.protocol.markup import AnswerParser, CalledTool
from zmqrt.protocol.tasks import ChatMessage, Generate, Grammar, Tool
from zmqrt.worker.engines.grammar import Grammars
from zmqrt.worker.engines.mock_tokens import EOS, VOCABULARY, token_under
from zmqrt.worker.tool_grammar import compile_calls

SCHEMA = {
    "$defs": {"Unit": {"enum": ["C", "F"]}},
    "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"$ref": "#/$defs/Unit"}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """What SCHEMA says."""

    city: Annotated[str, msgspec.Meta(max_length=5)]
    unit: Literal["C", "F"]


TOOLS = [
    Tool(name="weather", parameters=json.dumps(SCHEMA)),
    Tool(name='a "b"\n', parameters='{"properties":{"n":{"type":"integer"}},"additionalProperties":false}'),
]
MOCK = Grammars.of_bytes(VOCABULARY, clock=time.thread_time)


def task(**fields: object) -> Generate:
    """Make a request that requires a call."""
    given = {"tools": TOOLS, "tool_choice": "required", **fields}
    return Generate(messages=[ChatMessage(role="user", content="?")], **given)  # type: ignore[arg-type]  # any of them


def uttered(grammar: str, seed: int) -> list[CalledTool]:
    """Let chance draw an answer, and read its calls."""
    matcher, chance, made = MOCK.matcher(grammar, [], [EOS]), random.Random(seed), list[int]()
    while not matcher.is_over and len(made) < 3000:
        token = token_under(matcher.mask, chance.getrandbits(64), 0)
        matcher.take(token)
        made.append(token)
    assert matcher.is_over, matcher.error
    parser = AnswerParser(["weather"])
    deltas = parser.feed(bytes(token for token in made if token < 256).decode()) + parser.finish()
    assert all(isinstance(delta, CalledTool) for delta in deltas)
    return [delta for delta in deltas if isinstance(delta, CalledTool)]


def test_chance_itself_calls_a_tool_with_arguments_that_fit() -> None:
    """One or more calls; each is valid."""
    grammar = compile_calls(task())
    answers = [uttered(grammar, seed) for seed in range(20)]

    assert {call.name for calls in answers for call in calls} == {tool.name for tool in TOOLS}
    assert any(len(calls) > 1 for calls in answers)
    for call in (call for calls in answers for call in calls if call.name == "weather"):
        msgspec.json.decode(call.arguments, type=Arguments)


@pytest.mark.parametrize("fields", [{"tool_name": "weather"}, {"parallel_tool_calls": False}])
def test_one_call_alone_where_one_is_named_or_asked_for(fields: dict[str, object]) -> None:
    """Of the tool that is named."""
    answers = [uttered(compile_calls(task(**fields)), seed) for seed in range(10)]

    assert all(len(calls) == 1 for calls in answers)
    if "tool_name" in fields:
        assert {calls[0].name for calls in answers} == {"weather"}


def test_an_answer_that_need_not_call_is_a_call_or_keeps_to_its_schema() -> None:
    """Whichever the model begins."""
    grammar = compile_calls(task(tool_choice="auto", grammar=Grammar(kind="json_schema", text='{"const":"no"}')))
    matcher = MOCK.matcher(grammar, [], [EOS])
    for token in b'"no"':
        matcher.take(token)

    assert matcher.is_over
    assert uttered(compile_calls(task(grammar=Grammar(kind="json_schema", text='{"const":"no"}'))), 1)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ('{"properties":{"a":{"not":{}}}}', r"tools: f: parameters: .*/properties/a/not"),
        ('{"$ref":"https://x.example/"}', r"tools: f: parameters: /\$ref"),
        ('{"x":"' + "x" * 262_140 + '"}', "their schemas have"),
    ],
)
def test_parameters_that_cannot_be_kept_to_are_refused_with_the_name_of_their_tool(parameters: str, words: str) -> None:
    """And the place in them."""
    with pytest.raises(RequestError, match=words) as caught:
        compile_calls(task(tools=[Tool(name="f", parameters=parameters), Tool(name="g", parameters='{"x": 1}')]))

    assert caught.value.code == 400
