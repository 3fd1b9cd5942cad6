"""Answers of six families of models, taken apart: cut anywhere, the same words, thoughts and calls come of them."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cost import grows_by
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


NONSENSE = [*sorted(MARKUP), "{", "}", '"', "weather", "\\", " ", "\n", "[", "x", ";", '{"name":"', '{"name":{}}']
FURTHER = ["<function=weather>", "</function>", "<parameter=city>", "</parameter>", " " * 200]
CALLS = ['{"name":"weather","parameters":{}}', "\t"]


@given(st.lists(st.sampled_from([*NONSENSE, *FURTHER, *CALLS])))
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

    def read(size: int) -> None:
        arguments = json.dumps({"city": "x{]" * size})
        text = f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>'
        deltas = parsed([text[at : at + 3] for at in range(0, len(text), 3)])
        assert whole(deltas).calls == (("weather", arguments),)

    assert grows_by(8, read, 5_000, 20_000)


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
        ('{"name": {}}', []),
        ('{"name": {}, "function": 5}', []),
        ('{"function": {"function": {"name": "f"}}}', []),
        ("[" * 400 + "]" * 400, []),
    ],
)
def test_ways_to_write_a_call(body: str, found: list[FoundCall]) -> None:
    """Models vary."""
    assert calls_in(body) == found


LONG = 60_000
HOSTILE = {
    "words behind a mark": "[TOOL_CALLS] " + "x " * (LONG // 2),
    "words where arguments are meant": "<|channel|>commentary to=functions.weather<|message|>" + "x " * (LONG // 2),
    "words in a function": "<function=a>" + "x " * (LONG // 2),
    "blanks": " " * (2 * LONG),
    "blanks behind words": "x" + " " * (2 * LONG) + "x",
    "blanks in a call": "<tool_call>" + " " * (2 * LONG),
    "blanks behind a bracket": "[TOOL_CALLS][" + " " * LONG,
    "blanks between words and what is none": "[TOOL_CALLS]a" + " " * LONG + "{",
    "blanks behind a name": "<tool_call>a" + " " * LONG + "x</tool_call>",
    "blanks behind a call": "<|channel|>commentary to=functions.weather<|message|>{}" + " " * (2 * LONG),
    "a header without an end": "<|channel|>" + "a" * (4 * LONG),
    "functions that are not named": "<function=" * (LONG // 10),
    "arguments that do not end": "<function=a>" + "<parameter=a>" * (LONG // 13) + "</function>",
    "keys that do not end": "<tool_call>a" + "<arg_key>" * (LONG // 9) + "</tool_call>",
    "values that do not end": "<tool_call>a" + "<arg_key></arg_key><arg_value>" * (LONG // 30) + "</tool_call>",
    "tags that close nothing": "</tool_call>" * (LONG // 6),
    "many calls": '<tool_call>{"name":"weather","arguments":{}}</tool_call>' * (LONG // 12),
    "a long call": '<tool_call>{"name":"weather","arguments":{"city":"' + "x{" * (LONG // 2),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_an_answer_costs_no_more_than_its_length(text: str) -> None:
    """Whatever a model is made to write: a bridge reads it between the tokens of all others, whole or in pieces."""

    def read(size: int) -> None:
        parsed([text[:size]])
        parsed([text[at : at + 8] for at in range(0, size, 8)])

    assert grows_by(8, read, len(text) // 4, len(text))


def test_braces_cost_little_however_many_tools_there_are() -> None:
    """Each of them may begin a call without markup."""

    def read(tools: int) -> None:
        parsed(["x" + "{" * 5_000], tuple(f"tool_{number}" for number in range(tools)))

    assert grows_by(4, read, 4, 128)  # a look at each tool for each of them: by 20


def test_calls_have_ids_however_many_there_are() -> None:
    """Those of the first 65,536 stay what they were: an answer may go on at a bridge from before."""
    assert call_id(b"r" * 16, 7) == "z4agpqgsc"
    assert len({call_id(b"r" * 16, number) for number in (0, 65_535, 65_536, 1 << 24)}) == 4
