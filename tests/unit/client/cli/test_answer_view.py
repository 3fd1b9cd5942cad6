"""Words, thoughts and calls, each in its place."""

import json

import pytest

from zmqrt.client.cli.answer_view import AnswerView, answer_fields

CALLED = (
    "<think>Where?</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
)
TOOLS = ["weather"]


def shown(capsys: pytest.CaptureFixture[str], pieces: list[str], tools: list[str] | None = TOOLS) -> tuple[str, str]:
    """Show an answer piece by piece; return what stands on standard output, and beside it."""
    view = AnswerView(tools)
    for piece in pieces:
        view.show(piece)
    view.close()
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_words_calls_and_thoughts_are_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """However the answer was cut."""
    for pieces in ([CALLED], list(CALLED)):
        out, err = shown(capsys, pieces)
        words, call = out.splitlines()

        assert (words, json.loads(call)) == ("One moment.", {"name": "weather", "arguments": {"city": "Zürich"}})
        assert (out[-1], err) == ("\n", "Where?\n")


def test_a_call_that_was_cut_off_keeps_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no JSON in it to show."""
    out, _ = shown(capsys, [CALLED[: CALLED.index("rich")]])

    assert json.loads(out.splitlines()[-1]) == {"name": "weather", "arguments": '{"city": "Zü'}


@pytest.mark.parametrize(("text", "tools"), [(CALLED, None), ("", TOOLS), ("plain <tool_call>", [])])
def test_everything_else_is_a_line(capsys: pytest.CaptureFixture[str], text: str, tools: list[str] | None) -> None:
    """A raw text whatever it looks like, one that says nothing, and markup where no tool was given."""
    assert shown(capsys, [text], tools) == (f"{text}\n", "")


def test_programs_get_all_of_it() -> None:
    """In fields of their own."""
    assert answer_fields(CALLED, TOOLS) == {
        "content": "One moment.",
        "reasoning": "Where?",
        "tool_calls": [{"name": "weather", "arguments": {"city": "Zürich"}}],
    }
