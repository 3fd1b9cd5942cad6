"""A line of the result: its numbers, its words, and how all lines end the command."""

import pytest

from zmqrt.client.doctor.check import Check, count_of, cut_remedy, exit_code, parse_version, show_bytes


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("5.17.0rc1", (5, 17, 0)), ("27", (27,)), ("unknown", ()), ("", ())],
)
def test_a_version_is_its_leading_numbers(text: str, numbers: tuple[int, ...]) -> None:
    """Whatever a build adds to them."""
    assert parse_version(text) == numbers


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nobody listens; start one", ("nobody listens", "start one")),
        ("no keys are set. Make some", ("no keys are set", "Make some")),
        ("tcp://1.2.3.4: cannot connect", ("tcp://1.2.3.4: cannot connect", "look")),
    ],
)
def test_an_error_says_itself_what_to_do_if_it_can(text: str, parts: tuple[str, str]) -> None:
    """And where it does not, somebody else does."""
    assert cut_remedy(text, "look") == parts


def test_only_what_is_bad_fails() -> None:
    """Notes do not."""
    note, bad = Check("g", "n", "note", "x", "y"), Check("g", "n", "bad", "x", "y")

    assert [exit_code([]), exit_code([note]), exit_code([note, bad])] == [0, 0, 1]


def test_sizes_and_counts_read_as_people_write_them() -> None:
    """With a unit that leaves few digits, and a plural."""
    assert [show_bytes(count) for count in (0, 5 << 20, 80 << 30)] == ["0 KiB", "5.0 MiB", "80.0 GiB"]
    assert [count_of(number, "node") for number in (0, 1, 2)] == ["0 nodes", "1 node", "2 nodes"]
