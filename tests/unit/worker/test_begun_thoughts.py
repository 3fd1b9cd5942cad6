"""Thoughts that the end of a prompt begins: the answer has their mark in front, wherever it goes on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from support.byte_level import CHATML, add_specials, byte_level_tokenizer
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.markup import AnswerParser, Content, Reasoning
from zmqrt.protocol.tasks import ChatMessage, Generate, GenerateChunk, GenerateResult, Grammar, Rendering, Tool
from zmqrt.worker.chat_template import ChatTemplate
from zmqrt.worker.engines.base import TokenEvent
from zmqrt.worker.jobs import Job
from zmqrt.worker.preprocess import PreparedGeneration, Preprocessor, ServiceLimits
from zmqrt.worker.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer

HI = [ChatMessage(role="user", content="hi")]
LIMITS = ServiceLimits(
    service="m", task="generate", context=4096, default_max_tokens=99, capabilities=frozenset({"grammar", "tools"})
)
THINKS = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
ANSWER = "Hm, hm.\n</think>\n\nYes."


def vocabulary_of(template: str, *specials: str) -> FileTokenizer:
    """Make a vocabulary of bytes, some marks of which are special."""
    made = byte_level_tokenizer()
    add_specials(made, list(specials))
    return FileTokenizer(made, template=ChatTemplate(template, {}))


def ids_of(vocabulary: Tokenizer, text: str) -> list[int]:
    """Encode what a model would write."""
    return vocabulary.encode(text, is_raw=True)


def prepared(vocabulary: Tokenizer, delivered: list[int] | None = None, **fields: Any) -> PreparedGeneration:
    """Preprocess a request, some of whose answer was delivered before."""
    given: dict[str, Any] = {"messages": HI, **fields}
    task = Generate(**given)
    resume = b""
    if delivered:
        resume = msgspec.msgpack.encode([tasks.encode(GenerateChunk(ids=delivered, text=[""] * len(delivered)))])
    dispatch = m.Dispatch(1, "m", 30_000, 0, 1, len(delivered or []), b"r" * 16, "u", tasks.encode(task), resume)
    preprocessor = Preprocessor()
    preprocessor.tokenizer = vocabulary
    made = preprocessor.run(dispatch, LIMITS)
    assert isinstance(made, PreparedGeneration), made
    return made


def told(vocabulary: Tokenizer, answer: str, **fields: Any) -> str:
    """Return the text of an answer."""
    text = prepared(vocabulary, **fields).text
    return "".join(map(text.step, ids_of(vocabulary, answer))) + text.finish()


@pytest.mark.parametrize("specials", [(), ("<think>", "</think>")])
def test_an_answer_within_a_thought_has_its_mark_in_front(specials: tuple[str, ...]) -> None:
    """Whether marks are special tokens or not; a reader without tools tells thoughts from words then."""
    vocabulary = vocabulary_of(THINKS, *specials)
    text = told(vocabulary, ANSWER)
    parser = AnswerParser()

    assert text == "<think>" + ANSWER
    assert [*parser.feed(text), *parser.finish()] == [Reasoning("Hm, hm.\n"), Content("Yes.")]


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        (CHATML, {}),
        (CHATML.replace("assistant\n'", "assistant\n<think>\n\n</think>\n'"), {}),
        (THINKS, {"messages": None, "prompt": "<think>", "raw": True}),
        (THINKS, {"rendering": Rendering(continue_final_message=True)}),
        (THINKS, {"grammar": Grammar(kind="json_schema", text="{}")}),
        (THINKS, {"tools": [Tool(name="f")], "tool_choice": "required"}),
    ],
)
def test_other_answers_are_as_they_come(template: str, fields: dict[str, Any]) -> None:
    """No thought is begun, or it is the caller's own, or the answer keeps to what knows of none."""
    assert not told(vocabulary_of(template), "5", **fields).startswith("<think>")


@pytest.mark.parametrize("specials", [("<|user|>", "<|end|>", "<|assistant|>"), ("<|assistant|>", "<think>")])
def test_a_mark_that_the_user_wrote_begins_no_thought(specials: tuple[str, ...]) -> None:
    """Though nothing but special tokens stands behind it, which have no text: all of the answer would be thoughts."""
    template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>\n{{ think or '' }}"
    vocabulary = vocabulary_of(template, *specials)
    asks = [ChatMessage(role="user", content="What does this mean: <think>")]

    assert told(vocabulary, "5", messages=asks) == "5"
    assert told(ByteTokenizer(), "5", messages=asks) == "5"
    assert told(vocabulary, "5", messages=asks, rendering=Rendering(kwargs={"think": "<think>"})) == "<think>5"


def test_it_is_the_same_where_it_goes_on() -> None:
    """At every unit: the mark is part of the first one, and of no other; a stop does not see it."""
    vocabulary = vocabulary_of(THINKS)
    ids = ids_of(vocabulary, ANSWER)
    for cut in range(len(ids)):
        made = prepared(vocabulary, ids[:cut], stop=["<think>"])
        text = "".join(made.pieces) + "".join(map(made.text.step, ids[cut:])) + made.text.finish()
        assert text == "<think>" + ANSWER


def test_the_end_of_an_answer_tells_how_many_of_its_tokens_are_thoughts() -> None:
    """With their marks that it wrote itself."""
    vocabulary = vocabulary_of(THINKS)
    for answer, thoughts in ((ANSWER, len("Hm, hm.\n</think>")), ("Hm", 2)):
        job = Job(1, 0, m.Dispatch(1, "m", 30_000, 0, 1, 0, b"r" * 16, "u", b""), "token", 0.0)
        job.set_prepared(prepared(vocabulary))
        job.absorb(TokenEvent(ticket=1, token_ids=ids_of(vocabulary, answer)))
        job.finish("stop", "m", "r")
        assert isinstance(job.outcome, m.WorkerFinal)
        assert job.outcome.meta["reasoning_tokens"] == thoughts
        assert tasks.decode(job.outcome.body, GenerateResult).usage.completion_tokens == len(answer)


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": Grammar(kind="json_schema", text="{}")},
        {"tools": [Tool(name="f")], "tool_choice": "required"},
        {"tools": [Tool(name="f")], "grammar": Grammar(kind="json_schema", text="{}")},
    ],
)
def test_no_stop_cuts_json_that_says_that_it_is_whole(fields: dict[str, Any]) -> None:
    """It is over where its grammar is; a pattern of one's own is cut as its author wishes."""
    vocabulary = vocabulary_of(CHATML)

    assert told(vocabulary, '{"a":"b"}', stop=['"'], **fields) == '{"a":"b"}'
    own = Grammar(kind="regex", text="a+\n")
    assert told(vocabulary, "aa\n", stop=["\n"], grammar=own) == "aa"
    assert told(vocabulary, '{"a', stop=['"'], tools=[Tool(name="f")]) == "{"
