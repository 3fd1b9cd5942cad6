"""Which build of torch runs where, as a table."""

from __future__ import annotations

import pytest

from zmqrt.worker.torch_builds import driver_knows, has_code, install, read_version

CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


@pytest.mark.parametrize(
    ("architectures", "card", "has"),
    [
        (CU126, (6, 1), True),  # code for 6.0 runs on 6.1
        (CU126, (8, 9), True),
        (CU126, (10, 0), False),
        (CU130, (6, 1), False),
        (CU130, (7, 0), False),
        (CU130, (12, 1), True),
        (CU130, (13, 0), True),  # by PTX
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("sm_100f",), (10, 3), True),
        (("sm_86",), (8, 0), False),
        ((), (9, 0), True),
        (CU130, None, True),
        (("gfx942",), (9, 0), True),
    ],
)
def test_code_runs_within_a_major_version_and_ptx_on_all_later_cards(
    architectures: tuple[str, ...],
    card: tuple[int, int] | None,
    has: bool,  # noqa: FBT001 - parametrized
) -> None:
    """What is not known is taken to fit."""
    assert has_code(architectures, card) == has


@pytest.mark.parametrize(
    ("known", "cards", "words"),
    [
        ((12, 2), [(8, 0)], "whl/cu126"),  # by compatibility: there is none for 12.2
        ((12, 6), [(9, 0)], "whl/cu126"),
        ((12, 8), [(9, 0)], "whl/cu126"),  # the other one ended with torch 2.11
        ((12, 9), [(12, 0)], "whl/cu128"),
        ((13, 1), [(9, 0), (7, 5)], "whl/cu130"),
        ((13, 0), [(7, 0)], "whl/cu126"),
        ((13, 0), [(6, 1)], "whl/cu126"),
        ((12, 8), [(6, 1), (9, 0)], "whl/cu126"),
        (None, [None], "whl/cu126"),  # runs under most drivers
        (None, [(12, 0)], "whl/cu128"),
        ((11, 4), [(8, 0)], "driver to 525 or later"),
        ((13, 0), [(6, 1), (12, 0)], "no torch"),
        ((12, 8), [(3, 7)], "--device cpu"),
    ],
)
def test_the_build_that_suits_driver_and_cards_is_named(
    known: tuple[int, int] | None, cards: list[tuple[int, int] | None], words: str
) -> None:
    """Or what has to come first."""
    assert words in install(known, cards)


@pytest.mark.parametrize(
    ("version", "cuda"),
    [("535.183.01", (12, 2)), ("570.86", (12, 8)), ("580.65", (13, 0)), ("470.1", (11, 0)), ("", None)],
)
def test_a_driver_is_known_by_its_version(version: str, cuda: tuple[int, int] | None) -> None:
    """Where its library does not answer."""
    assert driver_knows(version) == cuda


def test_versions_are_read() -> None:
    """Of whichever length."""
    assert [read_version(text) for text in ("12.8", "13", "12.6.1")] == [(12, 8), (13, 0), (12, 6)]
