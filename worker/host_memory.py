"""How much memory a process of this machine can still get: of the machine, of its cgroups, of its own limits.

Linux only; elsewhere nothing is known. All of it is counted generously (swap is memory, file cache is free), for what
is refused on these grounds must not fit in truth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .memory_fit import DeviceMemory

_UNLIMITED: Final = 1 << 60
"""cgroup v1 writes a number near 2**63 for "none"."""


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> DeviceMemory | None:
    """Return the tightest of all bounds; None if this system does not tell."""
    found = _of_machine(proc)
    if found is None:
        return None
    swap_bytes = _numbers(proc / "meminfo").get("SwapFree:", 0) << 10
    return min([found, *_of_cgroups(proc, cgroups, swap_bytes), *_of_process(proc)], key=lambda one: one.free_bytes)


def _of_machine(proc: Path) -> DeviceMemory | None:
    kib = _numbers(proc / "meminfo")
    if "MemAvailable:" not in kib:
        return None
    free, total = kib["MemAvailable:"] + kib.get("SwapFree:", 0), kib["MemTotal:"] + kib.get("SwapTotal:", 0)
    return DeviceMemory(device="cpu", free_bytes=free << 10, total_bytes=total << 10)


def _of_cgroups(proc: Path, cgroups: Path, swap_bytes: int) -> Iterator[DeviceMemory]:
    """Yield the bound of each group that this process is in, and of those above it."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mounts, names = [cgroups, cgroups / "unified"], ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mounts, names = [cgroups / "memory"], ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        # Inside a container its own group is mounted at the top, whatever the path says: what is not there is skipped.
        own = Path(path.lstrip("/"))
        for mount in mounts:
            for folder in (mount / part for part in (own, *own.parents)):
                found = _of_group(folder, *names, swap_bytes)
                if found is not None:
                    yield found


def _of_group(folder: Path, limit: str, usage: str, prefix: str, swap_bytes: int) -> DeviceMemory | None:
    words, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    if not (words.isdigit() and used.isdigit()) or int(words) >= _UNLIMITED:
        return None
    statistics = _numbers(folder / "memory.stat")
    cache = sum(statistics.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file", "slab_reclaimable"))
    swap_limit = _text(folder / "memory.swap.max").strip()
    swap_bytes = min(swap_bytes, int(swap_limit)) if swap_limit.isdigit() else swap_bytes
    taken = max(0, int(used) - cache)
    return DeviceMemory(
        device="cpu",
        free_bytes=max(0, int(words) - taken) + swap_bytes,
        total_bytes=int(words) + swap_bytes,
        limit="the limit of its container or service (cgroup)",
    )


def _of_process(proc: Path) -> Iterator[DeviceMemory]:
    """Yield what `ulimit` leaves: of addresses, and of data."""
    pages = _text(proc / "self" / "statm").split()
    if sys.platform != "linux" or len(pages) < 6:
        return
    import resource

    limits = {"ulimit -v": (resource.RLIMIT_AS, pages[0]), "ulimit -d": (resource.RLIMIT_DATA, pages[5])}
    for name, (kind, used) in limits.items():
        most, _ = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            free = max(0, most - int(used) * resource.getpagesize())
            yield DeviceMemory(device="cpu", free_bytes=free, total_bytes=most, limit=name)


def _numbers(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    pairs = (line.split()[:2] for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
