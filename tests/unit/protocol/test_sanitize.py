"""What a terminal or a log may be given of somebody else's words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.sanitize import escaped, indented, printable, readable

ORDERS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u202a\u202e\u2066\u2069\u200e\u2028\u2029\udc80"]


@pytest.mark.parametrize("order", ORDERS, ids=lambda one: f"U+{ord(one):04X}")
def test_nothing_that_is_obeyed_passes(order: str) -> None:
    """C0, DEL, C1, overrides of direction, separators of lines, halves of characters."""
    assert order not in printable(f"a{order}b")
    assert order not in indented(f"a{order}b").replace("\n    ", "")
    assert (order in readable(f"a{order}b")) == (order in "\n\t")
    line = json.dumps({"a": order}, ensure_ascii=False)
    assert order not in escaped(line)
    assert json.loads(escaped(line)) == {"a": order}


def test_text_of_every_script_is_left_alone() -> None:
    """Joiners and variation selectors are part of it."""
    text = "Grüße, 日本 👩‍👩‍👧 ❤️ می‌خواهم हिन्दी\u00a0x\n\tsecond"

    assert readable(text) == text


def test_line_ends_of_windows_are_line_ends() -> None:
    """And nothing goes back to the beginning of a line, to be written over."""
    assert readable("a\r\nb\rc") == "a\nbc"


@given(st.text())
def test_only_the_first_line_begins_where_lines_begin(text: str) -> None:
    """Whatever a reader of logs takes for the end of a line."""
    first, *others = indented(text).splitlines() or [""]

    assert all(one.startswith("    ") for one in others)
    assert not first.startswith("\n")


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_escaped_json_is_the_same_data(value: dict[str, object]) -> None:
    """In a form that no terminal obeys."""
    line = escaped(json.dumps(value, ensure_ascii=False))

    assert json.loads(line) == value
    assert readable(line) == line
