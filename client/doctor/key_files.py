"""Judge the folder of keys: whether its parts can be read, belong together, and are nobody else's. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .check import Check, cut_remedy

GROUP: Final = "keys"
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
_COPY: Final = "make its files readable for this user, or copy them again from the folder that `zmqrt keygen` made"

Part = Literal["client", "worker", "broker"]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file that is there. `mode` is None where files have none that means anything (Windows)."""

    path: str
    mode: int | None
    is_secret: bool


@dataclass(frozen=True, slots=True)
class PartFacts:
    """A role's part of the folder that is there; `error` is what its own loader says about it."""

    part: Part
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class KeyFacts:
    """What was found at `--keys`."""

    directory: str
    is_directory: bool = True
    error: str = ""
    parts: Sequence[PartFacts] = ()
    files: Sequence[KeyFile] = ()


def judge(facts: KeyFacts | None) -> list[Check]:
    """Judge all of it; None = no keys are set."""
    if facts is None:
        return [Check(GROUP, "folder", "ok", "none given; without keys nothing here leaves this machine")]
    if not facts.is_directory or facts.error:
        found = facts.error or f"{facts.directory} is no folder"
        remedy = "name the folder that `zmqrt keygen` made with --keys, or make it readable for this user"
        return [Check(GROUP, "folder", "bad", found, remedy)]
    return [Check(GROUP, "folder", "ok", facts.directory), *_parts(facts), *_modes(facts.files)]


def _parts(facts: KeyFacts) -> Iterator[Check]:
    for one in facts.parts:
        if one.error:
            found, _ = cut_remedy(one.error, _COPY)  # the loader may advise new keys; a fleet that runs has some
            yield Check(GROUP, one.part, "bad", found, _COPY)
        else:
            yield Check(GROUP, one.part, "ok", "its files can be read, and the pair belongs together")
    here = {one.part for one in facts.parts}
    if not here:
        yield Check(GROUP, "client", "bad", "the folder holds the part of no role", _COPY)
    elif "client" not in here:
        remedy = "copy client/ and broker/public.key here, if commands are to reach the fleet from this machine"
        yield Check(GROUP, "client", "note", "the part of clients is not here", remedy)


def _modes(files: Sequence[KeyFile]) -> Iterator[Check]:
    modes = [(one, one.mode) for one in files if one.mode is not None]
    open_secrets = [one.path for one, mode in modes if one.is_secret and mode & _OTHERS]
    writable = [one.path for one, mode in modes if not one.is_secret and mode & _OTHERS_WRITE]
    if open_secrets:
        found = f"others may read or change {_listed(open_secrets)}"
        remedy = f"run: chmod 600 {shlex.join(open_secrets)}"
        yield Check(GROUP, "permissions", "bad", found, f"{remedy} (and make new keys if somebody may have read them)")
    if writable:
        found = f"others may change {_listed(writable)}"
        yield Check(GROUP, "permissions", "bad", found, f"run: chmod go-w {shlex.join(writable)}")
    if modes and not open_secrets and not writable:
        yield Check(GROUP, "permissions", "ok", "secrets are their owner's alone")


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths)
