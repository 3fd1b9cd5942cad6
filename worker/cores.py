"""How many cores this process may use: where the kernel lets it run, and what its control groups (cgroups) pay for.

`os.cpu_count` says what the machine has. In a container or under `taskset` that is too many, and threads without a core
of their own hold up those that have one: a matrix product is done when the last of them has its part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_CGROUPS: Final = "sys/fs/cgroup"
_TOPOLOGY: Final = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable_cores(root: Path = Path("/")) -> int:
    """Count cores, at least one; `root` is where `proc` and `sys` are.

    Two threads of one core share its units for arithmetic, so they count once. Of a quota the whole cores count: with
    one thread more than is paid for, all of them stand still for the rest of every period.
    """
    cores = {_siblings(root, cpu) for cpu in _allowed()}
    return max(1, int(min([len(cores), *_quotas(root)])))


def _allowed() -> set[int]:
    """Return the logical CPUs that this process may run on."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(root: Path, cpu: int) -> str:
    """Name the core of a logical CPU: by all that are in it, or by itself if the kernel does not tell."""
    return _read(root / _TOPOLOGY.format(cpu)) or str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """Give the cores that each of our control groups may use at once, of those that are bounded.

    A container may see the path that its group has on the host, with its own group at the root; so all that can be read
    between path and root count.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own = PurePosixPath(path.lstrip("/"))
        groups = [own, *own.parents]
        if not controllers:
            for group in groups:
                quota, _, period = _read(root / _CGROUPS / group / "cpu.max").partition(" ")
                yield from _ratio(quota, period)
        elif "cpu" in controllers.split(","):
            for group in groups:
                folder = root / _CGROUPS / controllers / group
                yield from _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> Iterator[float]:
    """Give a quota in cores; none if there is no number ("max", or no file), or a negative one."""
    if quota.isdecimal() and period.isdecimal() and int(period):
        yield int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
