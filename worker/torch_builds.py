"""Which published build of torch runs under which driver of NVIDIA and on which cards. Pure.

Two rules decide. CUDA is compatible within a major version: a build for 12.8 runs under a driver that knows 12.2, one
for 13.0 does not (docs.nvidia.com/deploy/cuda-compatibility, "minor version compatibility"). And machine code of
compute capability X.Y runs on cards X.Z with Z >= Y, PTX on every later one (CUDA C++ programming guide).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Published:
    """A build that download.pytorch.org has, and the cards that it has code for."""

    index: str
    cuda: tuple[int, int]
    oldest: Capability
    newest: Capability


_PUBLISHED: Final = (
    _Published("cu126", (12, 6), (5, 0), (9, 0)),
    _Published("cu128", (12, 8), (7, 5), (12, 1)),
    _Published("cu130", (13, 0), (7, 5), (99, 0)),
)
"""Of torch 2.9 and later ("PyTorch CUDA Support Matrix" in RELEASE.md of its repository). The second ended with 2.11,
so the first is better where it suits; for cards that are not out yet the last is the best guess."""
_OLDEST_DRIVER: Final = {12: "525", 13: "580"}
"""That runs any CUDA of a major version."""
_DRIVERS: Final = ((580, (13, 0)), (570, (12, 8)), (560, (12, 6)), (550, (12, 4)), (535, (12, 2)), (525, (12, 0)))
"""What drivers know, for one that does not say so itself; those below know CUDA 11 or less."""


def driver_knows(version: str) -> tuple[int, int] | None:
    """Return the newest CUDA that a driver knows, from its version; None if that says nothing."""
    major = re.match(r"\d+", version)
    return None if major is None else next((cuda for oldest, cuda in _DRIVERS if int(major[0]) >= oldest), (11, 0))


def driver_for(cuda: tuple[int, int]) -> str:
    """Name the oldest driver that runs builds of this version of CUDA."""
    return _OLDEST_DRIVER.get(cuda[0], "its newest version")


def read_version(text: str) -> tuple[int, int]:
    """Read the two numbers of a version of CUDA."""
    major, _, minor = text.partition(".")
    return int(major or 0), int(minor.partition(".")[0] or 0)


def has_code(architectures: Sequence[str], capability: Capability | None) -> bool:
    """Say whether one of `sm_90`, `compute_120`, … runs on a card; what is not known is taken to fit."""
    if capability is None or not architectures:
        return True
    return any(_runs(architecture, capability) for architecture in architectures)


def _runs(architecture: str, capability: Capability) -> bool:
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if parts is None:
        return True
    kind, major, minor, only = parts[1], int(parts[2]), int(parts[3]), parts[4]
    if only == "a":  # for exactly this card
        return (major, minor) == capability
    if kind == "compute" and not only:
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]


def install(known: tuple[int, int] | None, cards: Sequence[Capability | None]) -> str:
    """Name the command that installs a build for a driver that knows so much, and for these cards."""
    suiting = [build for build in _PUBLISHED if all(_suits(build, card) for card in cards)]
    if not suiting:
        return "no torch that zmqrt runs with has code for these cards: choose with --devices, or take --device cpu"
    running = [build for build in suiting if known is None or build.cuda[0] <= known[0]]
    if not running:
        needed = driver_for(suiting[0].cuda)
        return f"update NVIDIA's driver to {needed} or later (nvidia.com/drivers), then run: zmqrt doctor"
    # A driver that says nothing may be an old one.
    major = (min if known is None else max)(build.cuda[0] for build in running)
    best = next(build for build in running if build.cuda[0] == major)
    return f"run: pip install --force-reinstall 'torch>=2.9' --index-url https://download.pytorch.org/whl/{best.index}"


def _suits(build: _Published, card: Capability | None) -> bool:
    return card is None or build.oldest <= card <= build.newest
