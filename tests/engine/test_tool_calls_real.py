"""SmolLM2, which was never told of tools, must call one two hundred times: each call is one that can be made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from support.engines import describe, run
from support.tiny import silent
from zmqrt.protocol.markup import MARKUP, AnswerParser, CalledTool
from zmqrt.protocol.tasks import ChatMessage, Generate, Tool
from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.model_sources import resolve
from zmqrt.worker.tokenizer import load_tokenizer
from zmqrt.worker.tool_grammar import compile_calls

pytestmark = [pytest.mark.realmodel, pytest.mark.slow, pytest.mark.timeout(3600)]
AT_ONCE = 50
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "add": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 999} for name in ("a", "b")},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
TOOLS = [Tool(name=name, parameters=json.dumps(schema)) for name, schema in SCHEMAS.items()]
ASKED = ("What is 3 plus 4?", "Is it raining in Paris?", "Hello!", "Tell me a story.", "Add up 10 and 20, please.")


def test_two_hundred_forced_calls_are_valid() -> None:
    """A hundred of any tool, a hundred of one by its name; greedy and sampled."""
    model = Path(resolve("smollm2-135m", progress=silent).path)
    tokenizer = load_tokenizer(model)
    engine = factory(describe(model, model="smollm2-135m", slots=AT_ONCE, options={"threads": "2"}), silent)
    calls = list[CalledTool]()
    for name in (None, None, "add", "add"):
        requests = list[TokenRequest]()
        for ticket in range(AT_ONCE):
            talk = [ChatMessage(role="user", content=ASKED[ticket % len(ASKED)])]
            task = Generate(
                messages=talk, tools=TOOLS, tool_choice="required", tool_name=name, parallel_tool_calls=False
            )
            sampling = SamplingParams(temperature=1.0 if ticket % 2 else 0.0, seed=len(calls) + ticket)
            prompt_ids = tokenizer.encode_chat(talk, TOOLS)
            grammar = compile_calls(task)
            requests.append(
                TokenRequest(
                    ticket=ticket, prompt_ids=prompt_ids, max_new_tokens=100, grammar=grammar, sampling=sampling
                )
            )
        for outcome in run(engine, requests).values():
            parser, text = AnswerParser(list(SCHEMAS)), tokenizer.detokenizer(MARKUP)
            pieces = [text.step(token) for token in outcome.token_ids if token not in tokenizer.eos_ids]
            (call,) = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
            assert isinstance(call, CalledTool)
            assert outcome.finish_reason == "stop"
            assert name in (None, call.name)
            jsonschema_rs.validate(SCHEMAS[call.name], json.loads(call.arguments))
            calls.append(call)
    engine.close()

    assert len(calls) == 4 * AT_ONCE
    assert {call.name for call in calls} == set(SCHEMAS)
