"""What `zmqrt doctor` checks: each function yields findings, and says what to do about those that are not well.

GPUs, torch and the folder of models are checked by the worker package in a process of its own: a client never imports
it, torch takes seconds to import, and a driver may hang.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec
import zmq

from ...protocol import authorized_keys, diagnose, keys
from ...protocol.children import UTF8_OUTPUT, python
from ...protocol.errors import ConfigurationError, ZmqrtError
from ...protocol.own_files import LooseFileError
from ...protocol.snapshot import NodeStatus, Snapshot
from ..config import ClientSettings
from ..sync import Client

Verdict = Literal["ok", "note", "bad"]
"""note: works, but somebody may want to know. bad: does not work, or is unsafe."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result. `remedy` is empty where all is well."""

    group: str
    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def cut_remedy(text: str, otherwise: str) -> tuple[str, str]:
    """Part an error's text into what happened and what to do; our own errors say both."""
    for mark in ("; ", ". "):
        found, _, remedy = text.partition(mark)
        if remedy:
            return found, remedy
    return text, otherwise


# --- software --------------------------------------------------------------------------------------------------------

_SAFE_LIBZMQ: Final = (4, 3, 3)
"""Older ones let a peer without a key crash a broker or exhaust its memory (CVE-2019-13132, CVE-2020-15166)."""
_TRIED_LIBZMQ: Final = (4, 3, 5)
_NEW_WHEEL: Final = "run: pip install --upgrade --force-reinstall --only-binary :all: pyzmq (its wheels bring 4.3.5)"
_REQUIREMENT: Final = re.compile(r"(?P<name>[\w.-]+)[^;]*>=(?P<oldest>[\d.]+)")


def check_software(*, has_keys: bool) -> Iterator[Finding]:
    """Check versions, and encryption where there are keys."""
    yield Finding("software", "Python", "ok", platform.python_version())
    yield from check_packages("software", {"zmqrt": "0", **requirements()})
    yield check_libzmq(zmq.zmq_version())
    if zmq.has("curve"):
        yield Finding("software", "encryption", "ok", "libzmq has CURVE")
    else:
        verdict: Verdict = "bad" if has_keys else "note"
        yield Finding("software", "encryption", verdict, "libzmq was built without CURVE: no keys", _NEW_WHEEL)


def check_packages(group: str, oldest: dict[str, str]) -> Iterator[Finding]:
    """Compare what is installed with what is needed."""
    versions = {name: installed(name) for name in oldest}
    is_well = True
    for name, version in versions.items():
        if version is None or numbers(version) < numbers(oldest[name]):
            is_well = False
            found = "not installed" if version is None else f"{version} is too old"
            yield Finding(group, name, "bad", found, f"run: pip install --upgrade '{name}>={oldest[name]}'")
    if is_well and versions:
        yield Finding(group, "packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_libzmq(version: str) -> Finding:
    """Find one with known holes, or one that zmqrt is not tested with."""
    if numbers(version) < _SAFE_LIBZMQ:
        found = f"{version} has known holes: a peer without a key can crash a broker (CVE-2019-13132, CVE-2020-15166)"
        return Finding("software", "libzmq", "bad", found, _NEW_WHEEL)
    if numbers(version) < _TRIED_LIBZMQ:
        found = f"{version}; zmqrt is tested with 4.3.5, and older ones have bugs that it has not"
        return Finding("software", "libzmq", "note", found, _NEW_WHEEL)
    return Finding("software", "libzmq", "ok", version)


def requirements(extra: str = "") -> dict[str, str]:
    """Return what zmqrt's own metadata asks for here: each package with its oldest version."""
    found: dict[str, str] = {}
    try:
        lines = metadata.requires("zmqrt") or []
    except metadata.PackageNotFoundError:
        return found
    for line in lines:
        needed = _REQUIREMENT.match(line)
        is_asked = f'extra == "{extra}"' in line if extra else "extra ==" not in line
        is_elsewhere = sys.platform == "win32" and 'sys_platform != "win32"' in line
        if needed and is_asked and not is_elsewhere:
            found[needed["name"]] = needed["oldest"]
    return found


def installed(distribution: str) -> str | None:
    """Return the version of what is installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """Read the numbers that a version begins with: `2.13.0+cpu` is (2, 13, 0), and what has none is ()."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


# --- ports -----------------------------------------------------------------------------------------------------------

PortHolder = Literal["nobody", "a broker", "a bridge", "another program"]
_PORTS: Final[dict[int, tuple[str, PortHolder, str]]] = {
    7555: ("clients", "a broker", "zmqrt-broker --clients tcp://127.0.0.1:PORT"),
    7556: ("workers", "a broker", "zmqrt-broker --workers tcp://127.0.0.1:PORT"),
    8000: ("HTTP", "a bridge", "zmqrt-bridge --port PORT"),
}
"""Default port -> what it is for, who may be there, how to use another one."""
_CONNECT_S: Final = 3.0
"""Windows tries a closed port for two seconds before it says so."""
_ANSWER_S: Final = 2.0
"""A bridge whose broker is silent answers after one."""
_HEALTH: Final = b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
_IN_HEALTH: Final = (b'"ready":', b'"detail":', b'"devices":')
"""What the answer of a bridge holds."""
_ANSWER_BYTES: Final = 1 << 16


def check_ports() -> Iterator[Finding]:
    """Tell who listens at the ports that zmqrt uses by default."""
    for port, (purpose, expected, remedy) in _PORTS.items():
        holder = port_holder(port)
        if holder == "nobody":
            yield Finding("ports", str(port), "ok", f"free (for {purpose})")
        elif holder == expected:
            yield Finding("ports", str(port), "ok", f"in use by {holder}")
        else:
            yield Finding("ports", str(port), "note", f"in use by {holder}", f"end it, or use another port: {remedy}")


def port_holder(port: int) -> PortHolder:
    """Say who listens at a port of this machine. A broker speaks first, a bridge answers for its health."""
    try:
        with socket.create_connection(("127.0.0.1", port), _CONNECT_S) as plain:
            heard = diagnose.hear(plain, diagnose.GREETING_S)
            if heard.startswith(diagnose.SIGNATURE):
                return "a broker"
            answer = heard or diagnose.say(plain, _HEALTH, _ANSWER_S, enough=_ANSWER_BYTES)
    except ConnectionRefusedError:
        return "nobody"
    except OSError:
        return "another program"
    return "a bridge" if all(words in answer for words in _IN_HEALTH) else "another program"


# --- keys ------------------------------------------------------------------------------------------------------------

_COPY: Final = "make its files readable for this user, or copy them again from the folder that `zmqrt keygen` made"


def check_keys(directory: Path | None) -> Iterator[Finding]:
    """Have the roles' own loaders read each part of the folder."""
    if directory is None:
        yield Finding("keys", "folder", "ok", "none given; without keys nothing here leaves this machine")
        return
    try:
        parts = _key_loaders(directory) if directory.is_dir() else None
    except OSError:  # a folder above it is closed to us
        parts = None
    if parts is None:
        remedy = "name the folder that `zmqrt keygen` made with --keys, or make it readable for this user"
        yield Finding("keys", "folder", "bad", f"{directory} is no folder that can be read", remedy)
        return
    yield Finding("keys", "folder", "ok", str(directory))
    for part, load in parts.items():
        try:
            load()
        except LooseFileError as error:
            yield Finding("keys", part, "bad", *cut_remedy(str(error), _COPY))
        except (ConfigurationError, OSError) as error:  # new keys, which the loader may advise, would lock others out
            yield Finding("keys", part, "bad", cut_remedy(str(error), _COPY)[0], _COPY)
        else:
            yield Finding("keys", part, "ok", "its files can be read by us alone, and belong together")
    if not parts:
        yield Finding("keys", "client", "bad", "the folder holds the part of no role", _COPY)
    elif not {"client", "admin"} & parts.keys():
        remedy = "copy client/ and broker/public.key here, if commands are to reach the fleet from this machine"
        yield Finding("keys", "client", "note", "the part of clients is not here", remedy)


def _key_loaders(directory: Path) -> dict[str, Callable[[], object]]:
    """Return the parts that are here, with what reads each; broker/public.key alone is no broker's part."""

    def load_broker() -> None:
        keys.load_server(directory)
        authorized_keys.load_allowed(directory, "clients")
        authorized_keys.load_allowed(directory, "workers")

    found: dict[str, Callable[[], object]] = {}
    if (directory / "client").exists():
        found["client"] = lambda: keys.load_peer(directory, "client")
    if (directory / "admin").exists():
        found["admin"] = lambda: keys.load_peer(directory, "client", as_admin=True)
    if (directory / "worker").exists():
        found["worker"] = lambda: keys.load_peer(directory, "worker")
    if (directory / "broker" / "secret.key").exists():
        found["broker"] = load_broker
    return found


# --- brokers ---------------------------------------------------------------------------------------------------------

_NAME_ANOTHER: Final = "see that it runs and that the address is right, or name another one with --broker"


def check_brokers(settings: ClientSettings, *, are_named: bool) -> Iterator[Finding]:
    """Ask each broker by itself, all at the same time: those that are not there take seconds each."""
    if not settings.broker:
        yield Finding("broker", "reach", "bad", "no broker is named", "name one with --broker ENDPOINT")
        return
    ask = functools.partial(_ask, settings=settings, are_named=are_named)
    with ThreadPoolExecutor(len(settings.broker)) as pool:
        yield from itertools.chain.from_iterable(pool.map(ask, settings.broker))


def _ask(endpoint: str, *, settings: ClientSettings, are_named: bool) -> list[Finding]:
    group = f"broker {endpoint}"
    try:
        with Client.from_settings(dataclasses.replace(settings, broker=(endpoint,)), name="zmqrt doctor") as client:
            began_s = time.monotonic()
            snapshot = client.status()
            took_s = time.monotonic() - began_s
    except ZmqrtError as error:
        found, remedy = cut_remedy(str(error), _NAME_ANOTHER)
        if are_named:
            return [Finding(group, "reach", "bad", found, remedy)]
        return [Finding(group, "reach", "note", found, f"{remedy} (nobody named this broker: it is the default)")]
    return list(check_snapshot(group, snapshot, took_s))


def check_snapshot(group: str, snapshot: Snapshot, took_s: float) -> Iterator[Finding]:
    """Check what a broker reports of itself, its nodes and its models."""
    found = f"{snapshot.broker_id} answers in {1000 * took_s:.1f} ms"
    if snapshot.draining:
        yield Finding(group, "reach", "note", f"{found}; it drains", "start its successor, or name another broker")
    else:
        yield Finding(group, "reach", "ok", found)
    yield _nodes(group, snapshot.nodes)
    served = sorted(service.service for service in snapshot.services if service.nodes)
    idle = [service for service in snapshot.services if not service.nodes]
    if served:
        yield Finding(group, "models", "ok", ", ".join(served))
    if idle:
        names, queued = ", ".join(sorted(service.service for service in idle)), sum(service.queued for service in idle)
        found = f"no node serves {names} now, {queued} waiting"
        yield Finding(group, "models", "note", found, "start a node with it, or wait until one is ready")


def _nodes(group: str, nodes: list[NodeStatus]) -> Finding:
    if not nodes:
        remedy = "start one with `zmqrt-worker --broker tcp://HOST:7556`, with this broker's host"
        return Finding(group, "nodes", "note", "no node has joined yet", remedy)
    ready = sum(node.health == "active" and node.phase == "ready" and node.capacity > 0 for node in nodes)
    found = f"{ready} of {len(nodes)} ready"
    if failed := ", ".join(node.node_id for node in nodes if node.phase == "failed"):
        remedy = f"read the log of {failed}: its last lines name the device, the reason and what to do"
        return Finding(group, "nodes", "bad", f"{found}; {failed} cannot serve", remedy)
    if gone := ", ".join(node.node_id for node in nodes if node.health in ("lost", "evicted")):
        remedy = "start what is gone again, or see to its network; a node that comes back joins by itself"
        return Finding(group, "nodes", "note", f"{found}; gone: {gone}", remedy)
    if ready < len(nodes):
        return Finding(group, "nodes", "note", found, "wait; `zmqrt top` shows how far each one is")
    return Finding(group, "nodes", "ok", found)


# --- worker ----------------------------------------------------------------------------------------------------------

_HOST_REPORT: Final = "zmqrt.worker.host_report"
_PATIENCE_S: Final = 60.0
"""Importing torch from a slow disk takes half of it; a driver that hangs takes forever."""


def check_worker(*, module: str = _HOST_REPORT, patience_s: float = _PATIENCE_S) -> Iterator[Finding]:
    """Check the worker's packages, and have the worker package look at GPUs, torch and the folder of models."""
    if importlib.util.find_spec("zmqrt.worker") is None:
        yield Finding("worker", "package", "ok", "not installed, and a client does not need it")
        return
    if importlib.util.find_spec("torch") is not None:
        yield from check_packages("worker", requirements("worker"))
    remedy = f"run `python -m {module}` and nvidia-smi: one of them shows what hangs or fails"
    try:
        ended = subprocess.run(
            python(module),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **UTF8_OUTPUT},
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("worker", "report", "bad", f"no answer within {patience_s:.0f} s", remedy)
        return
    printed = (ended.stdout.strip().splitlines() or [""])[-1]
    try:
        for name, verdict, found, to_do in msgspec.json.decode(printed, type=list[tuple[str, Verdict, str, str]]):
            yield Finding("worker", name, verdict, found, to_do)
    except msgspec.DecodeError:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield Finding("worker", "report", "bad", f"it ended with code {ended.returncode}: {last}", remedy)
