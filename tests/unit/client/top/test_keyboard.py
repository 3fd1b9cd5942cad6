"""Keys from the bytes that a terminal sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.client.top.keyboard import split


@pytest.mark.parametrize(
    ("typed", "keys", "rest"),
    [
        ("q", ["q"], ""),
        ("\x1b[A\x1bOB", ["up", "down"], ""),
        ("\r\n\t \x7f\x03", ["enter", "enter", "tab", "space", "backspace", "ctrl-c"], ""),
        ("\x1b[5~\x1b[6~x", ["page-up", "page-down", "x"], ""),
        ("\x1b", [], "\x1b"),
        ("a\x1b[", ["a"], "\x1b["),
        ("\x1bq", ["escape", "q"], ""),
        ("\x1b\x1b[A", ["escape", "up"], ""),
        ("\x1b[15~j", ["j"], ""),
        ("\x1b[1;5Cj", ["j"], ""),
        ("é/", ["é", "/"], ""),
        ("\x1b[200~x\x1b[Ay\x1b[201~q", ["paste:x\x1b[Ay", "q"], ""),
        ("a\x1b[200~xy", ["a"], "\x1b[200~xy"),
        ("\x1a", ["ctrl-z"], ""),
    ],
)
def test_what_is_typed_becomes_keys(typed: str, keys: list[str], rest: str) -> None:
    """Sequences that are none of ours are skipped; the beginning of one is kept for the rest."""
    assert split(typed) == (keys, rest)


@given(st.text(alphabet="\x1b[OABq~15;\r", max_size=30))
def test_it_makes_no_difference_how_bytes_arrive(typed: str) -> None:
    """In one piece or one by one: over a slow line they come as they like."""
    keys: list[str] = []
    rest = ""
    for one in typed:
        more, rest = split(rest + one)
        keys += more

    whole, left = split(typed)
    assert keys + split(rest)[0] == whole + split(left)[0]
    assert len(rest) <= len(typed)
