"""Judge what is installed: Python, zmqrt and the packages below it, and what libzmq was built with. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .check import Check, Verdict, Version, parse_version, show_version

GROUP: Final = "software"
PYTHON: Final = (3, 11)
NEEDED: Final[dict[str, Version]] = {"pyzmq": (27,), "msgspec": (0, 20), "msgpack": (1, 1)}
"""Distribution -> the oldest that is meant to work; a test compares them with pyproject.toml."""
UVLOOP: Final = "uvloop"
_SAFE_LIBZMQ: Final = (4, 3, 3)
"""Older ones let a peer without a key crash a broker or exhaust its memory (CVE-2019-13132, CVE-2020-15166)."""
_TRIED_LIBZMQ: Final = (4, 3, 5)
_NEW_WHEEL: Final = "run: pip install --upgrade --force-reinstall --only-binary :all: pyzmq (its wheels bring 4.3.5)"


@dataclass(frozen=True, kw_only=True)
class Software:
    """What is installed; a package that is not here has the version None."""

    python: str
    packages: Mapping[str, str | None]
    libzmq: str
    has_curve: bool
    has_ipc: bool
    is_windows: bool = False


def judge(here: Software, *, has_keys: bool) -> list[Check]:
    """Judge all of it; `has_keys` tells whether this machine is to encrypt."""
    return [
        _python(here.python),
        _zmqrt(here.packages.get("zmqrt")),
        *(_package(name, oldest, here.packages.get(name)) for name, oldest in NEEDED.items()),
        *_uvloop(here),
        _libzmq(here.libzmq),
        *_features(here, has_keys=has_keys),
    ]


def _python(version: str) -> Check:
    if parse_version(version) >= PYTHON:
        return Check(GROUP, "Python", "ok", version)
    remedy = f"install Python {show_version(PYTHON)} or newer and make a new environment with it"
    return Check(GROUP, "Python", "bad", version, remedy)


def _zmqrt(version: str | None) -> Check:
    if version is not None:
        return Check(GROUP, "zmqrt", "ok", f"{version}, speaks ZRT/1")
    return Check(GROUP, "zmqrt", "note", "it runs, but is not installed", "run `pip install .` in its folder")


def _package(name: str, oldest: Version, version: str | None) -> Check:
    remedy = f"run: pip install --upgrade '{name}>={show_version(oldest)}'"
    if version is None:
        return Check(GROUP, name, "bad", "not installed", remedy)
    if parse_version(version) < oldest:
        return Check(GROUP, name, "bad", f"{version} is too old", remedy)
    return Check(GROUP, name, "ok", version)


def _uvloop(here: Software) -> Iterator[Check]:
    version = here.packages.get(UVLOOP)
    if here.is_windows:
        return  # it does not exist there, and only servers want it
    if version is not None:
        yield Check(GROUP, UVLOOP, "ok", version)
        return
    yield Check(GROUP, UVLOOP, "note", "not installed; broker and bridge are slower", "run: pip install uvloop")


def _libzmq(version: str) -> Check:
    found = parse_version(version)
    if found < _SAFE_LIBZMQ:
        words = f"{version} has known holes: a peer without a key can crash a broker (CVE-2019-13132, CVE-2020-15166)"
        return Check(GROUP, "libzmq", "bad", words, _NEW_WHEEL)
    if found < _TRIED_LIBZMQ:
        words = f"{version}; zmqrt is tested with 4.3.5, and older ones have bugs that it has not"
        return Check(GROUP, "libzmq", "note", words, _NEW_WHEEL)
    return Check(GROUP, "libzmq", "ok", version)


def _features(here: Software, *, has_keys: bool) -> Iterator[Check]:
    if here.has_curve:
        yield Check(GROUP, "encryption", "ok", "libzmq has CURVE")
    else:
        verdict: Verdict = "bad" if has_keys else "note"
        yield Check(GROUP, "encryption", verdict, "libzmq was built without CURVE: no keys", _NEW_WHEEL)
    if here.has_ipc:
        yield Check(GROUP, "ipc", "ok", "libzmq has ipc")
    else:
        yield Check(GROUP, "ipc", "note", "libzmq was built without ipc: no worker can run here", _NEW_WHEEL)
