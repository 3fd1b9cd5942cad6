"""SmolLM2 under a thousand schemas: every whole answer is valid, and masks cost next to nothing beside a step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.engines import describe, run
from support.tiny import silent
from zmqrt.protocol.tasks import Grammar
from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.grammar import Matcher
from zmqrt.worker.grammar_check import compile_grammar
from zmqrt.worker.model_sources import resolve
from zmqrt.worker.tokenizer import FileTokenizer, load_tokenizer

pytestmark = [pytest.mark.realmodel, pytest.mark.slow, pytest.mark.timeout(3600)]
AT_ONCE = 50
MOST_TOKENS = 120


def text(least: int, more: int) -> dict[str, Any]:
    """Make a schema of a text of some length."""
    return {"type": "string", "minLength": least, "maxLength": least + more}


def whole_number(low: int, span: int) -> dict[str, Any]:
    """Make one of a number within bounds."""
    return {"type": "integer", "minimum": low, "maximum": low + span}


def choice(values: list[Any]) -> dict[str, Any]:
    """Make one of some values."""
    return {"enum": values}


def list_of(items: dict[str, Any], most: int) -> dict[str, Any]:
    """Make one of a list."""
    return {"type": "array", "items": items, "maxItems": most}


def either(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Make one of two."""
    return {"anyOf": [one, other]}


def object_of(properties: dict[str, Any], is_required: list[bool]) -> dict[str, Any]:
    """Make one of an object, some of whose properties may be left out."""
    required = [name for name, is_it in zip(properties, is_required, strict=False) if is_it]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def around(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Make schemas of schemas."""
    names = st.sampled_from(["name", "age", "città", 'a"b', "tags", "where", "ok"])
    flags = st.lists(st.booleans(), min_size=4, max_size=4)
    return st.one_of(
        st.builds(object_of, st.dictionaries(names, inner, max_size=4), flags),
        st.builds(list_of, inner, st.integers(0, 3)),
        st.builds(either, inner, inner),
    )


FIXED: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
    {"type": "string", "format": "date"},
    {"const": {"fixed": ["as", 1, None]}},
]
VALUES: list[Any] = ["red", "grün", 7, None, 2.5]
leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(text, st.integers(0, 8), st.integers(0, 8)),
    st.builds(whole_number, st.integers(0, 500), st.integers(0, 500)),
    st.sampled_from(FIXED),
    st.builds(choice, st.lists(st.sampled_from(VALUES), min_size=1, unique=True)),
)
schemas = st.recursive(leaves, around, max_leaves=6)


@pytest.fixture(scope="module")
def model() -> Path:
    """Find SmolLM2."""
    return Path(resolve("smollm2-135m", progress=silent).path)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> FileTokenizer:
    """Read its tokenizer."""
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[GenerateEngine]:
    """Load it."""
    loaded = factory(describe(model, model="smollm2-135m", slots=AT_ONCE, options={"threads": "2"}), silent)
    yield loaded
    loaded.close()


@given(st.lists(schemas, min_size=AT_ONCE, max_size=AT_ONCE), st.integers(0, 2**32))
@settings(
    max_examples=20,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_a_thousand_answers_are_valid(
    engine: GenerateEngine, tokenizer: FileTokenizer, wanted: list[Any], seed: int
) -> None:
    """Greedy or sampled. What met its bound of tokens is cut off, and says so; most do not."""
    prompt = tokenizer.encode("Answer with JSON:\n", is_raw=True)
    requests = [
        TokenRequest(
            ticket=ticket,
            prompt_ids=prompt,
            max_new_tokens=MOST_TOKENS,
            grammar=compile_grammar(Grammar(kind="json_schema", text=json.dumps(schema))),
            sampling=SamplingParams(temperature=1.0 if ticket % 2 else 0.0, seed=seed),
        )
        for ticket, schema in enumerate(wanted)
    ]
    outcomes = run(engine, requests)

    whole = [ticket for ticket, outcome in outcomes.items() if outcome.finish_reason == "stop"]
    assert {outcome.finish_reason for outcome in outcomes.values()} <= {"stop", "length"}
    assert len(whole) >= 0.9 * AT_ONCE
    for ticket in whole:
        stops = tokenizer.eos_ids
        text = b"".join(tokenizer.spell(token) for token in outcomes[ticket].token_ids if token not in stops).decode()
        errors = jsonschema_rs.validator_for(wanted[ticket]).iter_errors(json.loads(text))
        assert list(errors) == [], f"{text} under {wanted[ticket]}"


def test_masks_are_a_small_part_of_a_step(
    engine: GenerateEngine, tokenizer: FileTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processor time of one sequence: under a twentieth. A ratio within one run, of this thread alone."""
    schema = {"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 8, "maxItems": 8}
    spent = 0.0
    take: Callable[[Matcher, int], None] = Matcher.take

    def timed(matcher: Matcher, token_id: int) -> None:
        nonlocal spent
        began = time.thread_time()
        take(matcher, token_id)
        spent += time.thread_time() - began

    monkeypatch.setattr(Matcher, "take", timed)
    grammar = compile_grammar(Grammar(kind="json_schema", text=json.dumps(schema)))
    prompt = tokenizer.encode("Eight towns as JSON: ", is_raw=True)
    began = time.process_time()
    run(engine, [TokenRequest(ticket=1, prompt_ids=prompt, max_new_tokens=200, grammar=grammar)])
    whole = time.process_time() - began

    print(f"masks took {100 * spent / whole:.2f} % of the processor time")
    assert spent < whole / 20
