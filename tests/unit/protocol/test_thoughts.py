"""How much of an answer is thoughts, counted in its units."""

from __future__ import annotations

import pytest

from support.cost import grows_by
from zmqrt.protocol.thoughts import begun_by, thought_units

HARMONY = ["<|channel|>", "analysis", "<|message|>", "Hm", "<|end|>"]


@pytest.mark.parametrize(
    ("pieces", "units"),
    [
        ([], 0),
        (["Yes."], 0),
        (["<think>", "Hm", "</think>", "Yes."], 3),
        (["\n<thi", "nk>Hm", "", "</think>Yes."], 4),
        (["<think>", "Hm", "", ""], 2),
        (["[THINK]", "a", "[/THINK]", "\n", "<think>", "b", "</think>", "Yes."], 7),
        ([*HARMONY, "<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "Yes."], 5),
    ],
)
def test_thoughts_are_counted_with_their_marks(pieces: list[str], units: int) -> None:
    """A unit that is partly one counts."""
    assert thought_units(pieces) == units


@pytest.mark.parametrize("pieces", [["<think>", "</think>"], [*HARMONY, "<|start|>"]])
def test_they_are_counted_at_once_however_many_there_are(pieces: list[str]) -> None:
    """A node counts them between its heartbeats, and a model can be made to write them over and over."""
    assert grows_by(8, lambda count: thought_units(pieces * count), 1_000, 4_000)  # counted anew for each: by 16


@pytest.mark.parametrize(("prompt", "mark"), [("a<think>\n", "<think>"), ("<think>a", ""), ("[THINK]", "[THINK]")])
def test_a_thought_is_begun_where_a_prompt_ends_in_its_mark(prompt: str, mark: str) -> None:
    """White space may follow."""
    assert begun_by(prompt) == mark
