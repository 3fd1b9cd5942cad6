"""Answers of six families of models, taken apart: cut anywhere, the same words, thoughts and calls come of them."""

from __future__ import annotations

import json
import time
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.markup import MARKUP, AnswerParser, CalledTool, Content, Delta, Reasoning, call_id
from zmqrt.protocol.tool_calls import FoundCall, calls_in

TOOLS = ("weather", "get_time")
PARIS = '{"city": "Paris", "days": 2}'


class Whole(NamedTuple):
    """What an answer is, put together."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()


SAMPLES: dict[str, tuple[str, Whole]] = {
    "words": ("Hello [there] <you>, {x}.\n", Whole("Hello [there] <you>, {x}.\n")),
    "blanks": (" \n", Whole(" \n")),
    "thoughts": ("<think>\nHm, <b>?\n</think>\n\nYes.", Whole("Yes.", "\nHm, <b>?\n")),
    "thoughts of Mistral": ("[THINK]Hm[/THINK]Yes.", Whole("Yes.", "Hm")),
    "thoughts cut short": ("<think>Hm </thi", Whole("", "Hm </thi")),
    "Hermes": (
        f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>',
        Whole(calls=(("weather", PARIS),)),
    ),
    "Qwen, thinking, speaking, two calls": (
        (
            "<think>I need both.</think>\n\nOne moment. \n<tool_call>\n"
            f'{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>\n'
            '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n'
        ),
        Whole("One moment.", "I need both.", (("weather", PARIS), ("get_time", "{}"))),
    ),
    "Hermes, its closing tag and brackets inside a string": (
        '<tool_call>{"name": "weather", "arguments": {"city": "a\\"}</tool_call>\\\\"}}</tool_call>Done.',
        Whole("Done.", calls=(("weather", '{"city": "a\\"}</tool_call>\\\\"}'),)),
    ),
    "Qwen's coder": (
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nNew\nYork\n</parameter>\n"
            "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
        ),
        Whole(calls=(("weather", '{"city": "New\\nYork", "days": 2}'),)),
    ),
    "GLM": (
        (
            "Let me see.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
        ),
        Whole("Let me see.", calls=(("weather", PARIS),)),
    ),
    "Llama, bare": (
        '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}',
        Whole(calls=(("weather", PARIS),)),
    ),
    "Llama, bare, two calls": (
        '\n{"type": "function", "name": "weather", "parameters": {}}; {"name": "get_time", "parameters": {}}',
        Whole(calls=(("weather", "{}"), ("get_time", "{}"))),
    ),
    "JSON that is no call": ('{"name": "Bob", "age": 3} is he.', Whole('{"name": "Bob", "age": 3} is he.')),
    "JSON that begins otherwise": ('{"nam": 1}', Whole('{"nam": 1}')),
    "Llama, with its tag": (
        f'<|python_tag|>{{"name": "weather", "parameters": {PARIS}}}; {{"name": "get_time", "parameters": {{}}}}',
        Whole(calls=(("weather", PARIS), ("get_time", "{}"))),
    ),
    "Mistral before version 11": (
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}, {{"name": "get_time", "arguments": {{}}}}]',
        Whole(calls=(("weather", PARIS), ("get_time", "{}"))),
    ),
    "Mistral": (
        f"Well: [TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{PARIS}[TOOL_CALLS]get_time[ARGS]{{}}",
        Whole("Well:", calls=(("weather", PARIS), ("get_time", "{}"))),
    ),
    "gpt-oss": (
        (
            "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary<|message|>A moment."
            "<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
            f"{PARIS}<|call|>"
        ),
        Whole("A moment.", "Need it.", (("weather", PARIS),)),
    ),
    "gpt-oss, its stop token taken off": (
        f"<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{PARIS}",
        Whole(calls=(("weather", PARIS),)),
    ),
    "gpt-oss, its header begun by the prompt": (
        f"to=functions.weather<|channel|>commentary json<|message|>{PARIS}<|call|>",
        Whole(calls=(("weather", PARIS),)),
    ),
    "gpt-oss, an answer": (
        "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>It is 4 < 5.",
        Whole("It is 4 < 5.", "Easy."),
    ),
    "a call cut short in its arguments": (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Par',
        Whole(calls=(("weather", '{"city": "Par'),)),
    ),
    "a call cut short in its name": ('Well <tool_call>\n{"name": "wea', Whole("Well")),
    "a tag that closes nothing": ("Well.</tool_call> Yes.", Whole("Well. Yes.")),
    "markup around nothing that can be called": ("<tool_call>what?</tool_call>", Whole("what?")),
}


def whole(deltas: list[Delta]) -> Whole:
    """Put an answer together."""
    calls = [delta for delta in deltas if isinstance(delta, CalledTool)]
    assert [call.number for call in calls] == list(range(len(calls)))
    return Whole(
        "".join(delta.text for delta in deltas if isinstance(delta, Content)),
        "".join(delta.text for delta in deltas if isinstance(delta, Reasoning)),
        tuple((call.name, call.arguments) for call in calls),
    )


def parsed(pieces: list[str], tools: tuple[str, ...] = TOOLS) -> list[Delta]:
    """Feed the pieces of an answer."""
    parser = AnswerParser(tools)
    return [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()


@pytest.mark.parametrize("family", SAMPLES)
def test_an_answer_is_the_same_however_it_is_cut(family: str) -> None:
    """Whole, in two at every place, and letter by letter."""
    text, expected = SAMPLES[family]

    assert whole(parsed([text])) == expected
    for at in range(len(text)):
        assert whole(parsed([text[:at], text[at:]])) == expected, at
    assert whole(parsed(list(text))) == expected


@pytest.mark.parametrize("family", SAMPLES)
def test_no_markup_is_content_wherever_an_answer_ends(family: str) -> None:
    """Not even its first half is told as words, if more of it came later."""
    text, _ = SAMPLES[family]
    for end in range(len(text)):
        content = whole(parsed([text[:end]])).content
        assert not any(markup in content for markup in MARKUP)


@given(
    st.lists(st.sampled_from([*sorted(MARKUP), "{", "}", '"', "weather", "\\", " ", "\n", "[", "x", ";", '{"name":"']))
)
def test_nonsense_is_taken_apart_alike_however_it_is_cut(pieces: list[str]) -> None:
    """And never fails."""
    text = "".join(pieces)

    assert whole(parsed(list(text))) == whole(parsed([text])) == whole(parsed(pieces))


@pytest.mark.parametrize("family", SAMPLES)
def test_what_is_told_by_now_depends_on_the_text_so_far_alone(family: str) -> None:
    """Not on its pieces: else a stream that goes on from its middle would repeat something, or leave it out."""
    text, _ = SAMPLES[family]
    letters = AnswerParser(TOOLS)
    told = list[Delta]()
    for end in range(1, len(text) + 1):
        told += letters.feed(text[end - 1])
        assert whole(told) == whole(AnswerParser(TOOLS).feed(text[:end])), end


def test_an_answer_is_text_as_it_is_where_no_tool_was_asked_for() -> None:
    """Whoever asked for none wants to read what a model says about markup."""
    text = f'<tool_call>{{"name": "weather", "arguments": {PARIS}}}</tool_call> [TOOL_CALLS] <think>'

    assert whole(parsed(list(text), ())) == Whole(text)


def test_words_are_told_as_they_come() -> None:
    """Nothing is held back but what may become markup."""
    parser = AnswerParser(TOOLS)

    assert parser.feed("Hel") == [Content("Hel")]
    assert parser.feed("lo <tool") == [Content("lo")]
    assert parser.feed("box>") == [Content(" <toolbox>")]
    assert parser.finish() == []


def test_a_long_call_in_small_pieces_costs_no_more_than_its_length() -> None:
    """No piece is read twice."""
    arguments = json.dumps({"city": "x{]" * 20_000})
    text = f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>'
    began = time.process_time()
    deltas = parsed([text[at : at + 3] for at in range(0, len(text), 3)])

    assert whole(deltas).calls == (("weather", arguments),)
    assert time.process_time() - began < 2.0  # a second reading of each would take a minute


def test_ids_of_calls_depend_on_the_request_and_their_place_alone() -> None:
    """So that every bridge says the same; nine letters or figures, for Mistral's templates."""
    ids = [call_id(b"r" * 16, index) for index in range(3)]

    assert ids == [call_id(b"r" * 16, index) for index in range(3)]
    assert len({*ids, call_id(b"s" * 16, 0)}) == 4
    assert all(len(one) == 9 and one.isalnum() for one in ids)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('{"function": {"name": "f", "arguments": {"a": 1}}}', [FoundCall("f", '{"a": 1}')]),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', [FoundCall("f", '{"a": 1}')]),
        ('{"name": "f"}', [FoundCall("f", "{}")]),
        ('{"name": "f", "arguments": null}', [FoundCall("f", "{}")]),
        ('{"name": 5}', []),
        ("[]", []),
        ("", []),
        ("[1]", []),
        ('{"name": ""}', []),
    ],
)
def test_ways_to_write_a_call(body: str, found: list[FoundCall]) -> None:
    """Models vary."""
    assert calls_in(body) == found


@pytest.mark.parametrize(
    "begin", ["[TOOL_CALLS] ", "<|channel|>commentary to=functions.weather<|message|>", "<function=a>"]
)
def test_a_long_call_that_is_none_costs_no_more_than_its_length_either(begin: str) -> None:
    """Whatever a model writes behind a mark."""
    text = begin + "x " * 60_000
    began = time.process_time()
    parsed([text[at : at + 4] for at in range(0, len(text), 4)])

    assert time.process_time() - began < 2.0  # a second reading of each piece would take 5 s
