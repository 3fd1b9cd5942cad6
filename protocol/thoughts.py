"""How thoughts are marked in answers, and how much of one they are. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from typing import Final

THOUGHTS: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}
HEADS: Final = ("<|start|>", "<|channel|>")
HARMONY: Final = frozenset({*HEADS, "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"})
"""Marks of gpt-oss, all of them: its thoughts are messages among others."""
MARKS: Final = frozenset({*THOUGHTS, *THOUGHTS.values(), *HARMONY})
_ANALYSIS: Final = re.compile(
    r"(?:<\|start\|>[^<]*)?<\|channel\|>\s*analysis[^<]*<\|message\|>.*?(?:<\|end\|>|(?=<\|start\|>)|$)", re.DOTALL
)
_BEGUN: Final = re.compile("(" + "|".join(map(re.escape, THOUGHTS)) + r")\s*")
_OPENER: Final = re.compile(r"\s*(" + "|".join(map(re.escape, THOUGHTS)) + ")")
_LOOK: Final = 16
"""Units within which thoughts begin, if there are any."""


def shown(marks: Collection[str], vocabulary: Collection[str]) -> frozenset[str]:
    """Return those of some marks that have their text in answers of a model: Harmony's are ends of turns to others."""
    mine = frozenset(marks).intersection(vocabulary)
    return mine if "<|channel|>" in mine else mine - HARMONY


def begun_by(prompt: str) -> str:
    """Return the mark of thoughts that the end of a prompt begins; nothing if it begins none."""
    found = [one for one in _BEGUN.finditer(prompt) if one.end() == len(prompt)]
    return found[-1][1] if found else ""


def thought_units(pieces: Sequence[str]) -> int:
    """Count the units of an answer that are thoughts, with their marks; `pieces` are the texts of its units."""
    if not "".join(pieces[:_LOOK]).lstrip().startswith((*THOUGHTS, *HEADS)):
        return 0
    text = "".join(pieces)
    ends = list(accumulate(map(len, pieces)))
    return sum(_units_to(ends, end) - _units_to(ends, begin) for begin, end in _spans(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where thoughts begin and end."""
    if text.lstrip().startswith(HEADS):
        yield from (found.span() for found in _ANALYSIS.finditer(text))
        return
    begin = 0
    while found := _OPENER.match(text, begin):
        closer = THOUGHTS[found[1]]
        end = text.find(closer, found.end())
        end = len(text) if end < 0 else end + len(closer)
        yield begin, end
        begin = end


def _units_to(ends: Sequence[int], chars: int) -> int:
    """Count the units that it takes to write so many characters; `ends`: how many there are up to each."""
    return min(bisect_left(ends, chars) + 1, len(ends)) if chars > 0 else 0
