"""How thoughts are marked in answers, and how much of one they are. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
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
    spans = list(_spans(text))
    return sum(_units_to(pieces, end) - _units_to(pieces, begin) for begin, end in spans)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where thoughts begin and end."""
    if text.lstrip().startswith(HEADS):
        yield from (found.span() for found in _ANALYSIS.finditer(text))
        return
    begin = 0
    while found := next((one for one in THOUGHTS if text[begin:].lstrip().startswith(one)), None):
        end = text.find(THOUGHTS[found], begin)
        end = len(text) if end < 0 else end + len(THOUGHTS[found])
        yield begin, end
        begin = end


def _units_to(pieces: Sequence[str], chars: int) -> int:
    """Count the units that it takes to write so many characters."""
    units = 0
    for piece in pieces:
        if chars <= 0:
            break
        chars -= len(piece)
        units += 1
    return units
