"""Limits, clock and ports, judged."""

from dataclasses import replace

import pytest

from zmqrt.client.doctor.check import Check
from zmqrt.client.doctor.machine import PORTS, Kind, Machine, judge

NOW = 1_795_000_000.0
GOOD = Machine(open_files=20_000, unix_s=NOW, holders=dict.fromkeys(PORTS, "nobody"))


def unwell(here: Machine) -> list[Check]:
    """Return what is not ok."""
    return [one for one in judge(here) if one.verdict != "ok"]


def test_an_idle_machine_is_well() -> None:
    """Every port is named."""
    assert unwell(GOOD) == []
    assert {"port 7555", "port 7556", "port 8000"} <= {one.name for one in judge(GOOD)}


@pytest.mark.parametrize(("limit", "verdicts"), [(1024, ["note"]), (4095, ["note"]), (4096, []), (1 << 63, [])])
def test_few_open_files_are_a_note(limit: int, verdicts: list[str]) -> None:
    """A small fleet does with them."""
    found = unwell(replace(GOOD, open_files=limit))

    assert [one.verdict for one in found] == verdicts
    assert all("ulimit -n 65536" in one.remedy for one in found)


def test_where_there_is_no_such_limit_nothing_is_said() -> None:
    """Windows has none."""
    assert "open files" not in {one.name for one in judge(replace(GOOD, open_files=None))}


@pytest.mark.parametrize(("unix_s", "words"), [(0.0, "before 2025"), (5e9, "after 2099")])
def test_a_clock_that_was_never_set_is_bad(unix_s: float, words: str) -> None:
    """Downloads fail over it."""
    (one,) = unwell(replace(GOOD, unix_s=unix_s))

    assert (one.name, one.verdict) == ("clock", "bad")
    assert words in one.found
    assert "NTP" in one.remedy


@pytest.mark.parametrize(
    ("kinds", "unwell_ports"),
    [
        (("broker", "broker", "bridge"), []),
        (("other", "other", "other"), ["port 7555", "port 7556", "port 8000"]),
        (("bridge", "nobody", "broker"), ["port 7555", "port 8000"]),
    ],
)
def test_a_port_is_for_whom_it_is_for(kinds: tuple[Kind, ...], unwell_ports: list[str]) -> None:
    """Anybody else is a note, and the flag for another port is named."""
    found = unwell(replace(GOOD, holders=dict(zip(PORTS, kinds, strict=True))))

    assert [one.name for one in found] == unwell_ports
    assert all(one.verdict == "note" and "PORT" in one.remedy for one in found)
