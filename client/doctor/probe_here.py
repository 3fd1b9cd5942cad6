"""Look at this machine: what is installed, its limits, its clock, its ports and its keys. Judges nothing."""

from __future__ import annotations

import os
import platform
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import zmq

from ...protocol import diagnose, keys
from ...protocol.errors import ConfigurationError
from ...protocol.own_files import LooseFileError
from .key_files import KeyFacts, KeyFile, Part, PartFacts
from .machine import PORTS, Kind, Machine, Port
from .software import NEEDED, UVLOOP, Software

_CONNECT_S: Final = 3.0
"""Windows tries a closed port for two seconds before it says so."""
_ANSWER_S: Final = 2.0
"""A bridge whose broker is silent answers after one."""
_HEALTH: Final = b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
_IN_HEALTH: Final = (b'"ready":', b'"detail":', b'"devices":')
"""What the answer of a bridge holds."""
_ANSWER_BYTES: Final = 1 << 16


def software() -> Software:
    """Look what is installed."""
    return Software(
        python=platform.python_version(),
        packages={name: _version(name) for name in ("zmqrt", *NEEDED, UVLOOP)},
        libzmq=zmq.zmq_version(),
        has_curve=zmq.has("curve"),
        has_ipc=zmq.has("ipc"),
        is_windows=sys.platform == "win32",
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def machine() -> Machine:
    """Look at limits and clock, and knock at the ports."""
    holders: dict[Port, Kind] = {port: holder(port.number) for port in PORTS}
    return Machine(open_files=_open_files(), unix_s=time.time(), holders=holders)


def _open_files() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def holder(port: int) -> Kind:
    """Say who listens at a port of this machine."""
    try:
        with socket.create_connection(("127.0.0.1", port), _CONNECT_S) as plain:
            said = diagnose.hear(plain, diagnose.GREETING_S)
            if said.startswith(diagnose.SIGNATURE):
                return "broker"
            answer = said or diagnose.say(plain, _HEALTH, _ANSWER_S, enough=_ANSWER_BYTES)
    except ConnectionRefusedError:
        return "nobody"
    except OSError:
        return "other"
    return "bridge" if all(words in answer for words in _IN_HEALTH) else "other"


def key_files(directory: Path | None) -> KeyFacts | None:
    """Look at the folder of keys, and have the roles' own loaders read it."""
    if directory is None:
        return None
    try:
        return KeyFacts(
            directory=str(directory),
            is_directory=directory.is_dir(),
            parts=[PartFacts(part, _complaint(load)) for part, load in _loaders(directory)],
            files=list(_files(directory)),
        )
    except OSError as error:
        return KeyFacts(directory=str(directory), error=f"{directory} cannot be read: {error.strerror or error}")


def _loaders(directory: Path) -> Iterator[tuple[Part, Callable[[], object]]]:
    """Name the parts that are here, with what reads each; broker/public.key alone is no broker's part."""
    if (directory / "client").exists() or (directory / "admin").exists():
        yield "client", lambda: [keys.load_peer(directory, "client", as_admin=admin) for admin in (False, True)]
    if (directory / "worker").exists():
        yield "worker", lambda: keys.load_peer(directory, "worker")
    if (directory / "broker" / "secret.key").exists():
        yield "broker", lambda: _load_broker(directory)


def _load_broker(directory: Path) -> None:
    keys.load_server(directory)
    keys.load_allowed(directory, "clients")
    keys.load_allowed(directory, "workers")


def _complaint(load: Callable[[], object]) -> str:
    try:
        load()
    except LooseFileError:
        return ""  # modes are judged by themselves, all of them
    except ConfigurationError as error:
        return str(error)
    return ""


def _files(directory: Path) -> Iterator[KeyFile]:
    for path in (*sorted(directory.glob("*/*.key")), *sorted(directory.glob("authorized_*"))):
        mode = None if os.name == "nt" else stat.S_IMODE(path.stat().st_mode)
        yield KeyFile(str(path), mode, path.name == "secret.key")
