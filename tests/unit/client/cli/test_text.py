"""Small pieces: numbers, sparklines, tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from zmqrt.client.cli.text import Column, ago, bar, number, size, spark, table, took


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0"), (7, "7"), (7.25, "7.2"), (9999, "9999"), (12_345, "12k"), (1.5e6, "1.5M"), (2e12, "2000G")],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    """Five characters at most, for columns."""
    assert number(value) == shown


@given(st.floats(min_value=0, max_value=1e14))
def test_no_number_is_long(value: float) -> None:
    """Whatever is counted."""
    assert len(number(value)) <= 7


def test_times_and_sizes_are_said_as_people_say_them() -> None:
    """With the unit that fits."""
    assert [took(one) for one in (None, 0.0012, 0.25, 3.456, 250.0)] == ["-", "1.2 ms", "250 ms", "3.5 s", "4 min"]
    assert [ago(one) for one in (5, 65, 3700, 200_000)] == ["5 s", "1 min", "1 h 01 min", "2 d"]
    assert [size(one) for one in (80 << 30, 640 << 30)] == ["80.0G", "640G"]


def test_sparklines_and_bars() -> None:
    """The newest values fill the room there is."""
    assert spark([0, 1, 2, 4], 10).plain == "▁▃▅█"
    assert spark([9, 0, 0], 2).plain == "▁▁"
    assert spark([], 5).plain == spark([1], 0).plain == spark([1], -3).plain == ""
    assert bar(0.5, 4).plain == "██░░"
    assert bar(7.0, 3).plain == "███"


@given(st.lists(st.lists(st.text(max_size=30), min_size=3, max_size=3), max_size=5), st.integers(12, 100))
def test_a_table_never_exceeds_its_width(cells: list[list[str]], width: int) -> None:
    """Its widest column gives way; every row is one line."""
    columns = [Column("one"), Column("two", "right"), Column("three", most=8)]
    lines = table(columns, [[Text(cell) for cell in row] for row in cells], width)

    assert len(lines) == len(cells) + 1
    assert all(line.cell_len <= width for line in lines)
