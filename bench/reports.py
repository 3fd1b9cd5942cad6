"""What every report of a bench begins with, and the file that it goes into."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

HERE: Final = Path(__file__).parent


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """How, with what and where it was measured; a report adds what came of it."""

    command: str
    versions: dict[str, str]
    machine: str
    cores: int
    load_average: tuple[float, float, float]


def circumstances(*packages: str) -> dict[str, Any]:
    """Return those of this run, with the versions of these packages too: the first fields of its report."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "versions": {
            **{name: version(name) for name in ("zmqrt", "pyzmq", "msgspec", *packages)},
            "python": platform.python_version(),
            "libzmq": zmq.zmq_version(),
        },
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 0,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0),
    }


def write(report: Circumstances, name: str, *, is_kept: bool) -> str:
    """Write it to bench/results/, which git keeps, or to bench/out/; return the path as people see it."""
    folder = HERE / ("results" if is_kept else "out")
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime(f"{name}-%Y%m%d-%H%M%S.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return os.path.relpath(path)
