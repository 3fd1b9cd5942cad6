"""How much memory a process can still get: machines, cgroups of both kinds and limits, laid out as files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zmqrt.worker.host_memory import host_memory

MIB = 1 << 20
MEMINFO = "MemTotal: 16384 kB\nMemFree: 1 kB\nMemAvailable: 8192 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n"


def machine(root: Path, group: str, files: dict[str, str]) -> tuple[int, int, str]:
    """Lay out a machine of 16 MiB; return what is free there, of how much, and what bounds it."""
    proc, groups = root / "proc", root / "cgroup"
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": group, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    found = host_memory(proc, groups)
    assert found is not None
    return found.free_bytes, found.total_bytes, found.limit


def v2(folder: str, limit: str, used: int, cache: int, swap: str = "max") -> dict[str, str]:
    """Write the files of a group."""
    return {
        f"cgroup/{folder}memory.max": limit,
        f"cgroup/{folder}memory.current": str(used),
        f"cgroup/{folder}memory.swap.max": swap,
        f"cgroup/{folder}memory.stat": f"anon 1\nactive_file {cache}\ninactive_file 0\n",
    }


FREE = (9 * MIB, 18 * MIB)
"""Of the machine, with its swap."""


@pytest.mark.parametrize(
    ("group", "files", "free", "total"),
    [
        ("", {}, *FREE),
        ("0::/\n", v2("", "max", 5 * MIB, 0), *FREE),
        ("0::/\n", v2("", str(4 * MIB), 3 * MIB, MIB), 3 * MIB, 5 * MIB),
        ("0::/\n", v2("", str(4 * MIB), 3 * MIB, MIB, swap="0"), 2 * MIB, 4 * MIB),
        ("0::/a/b\n", {**v2("a/", str(2 * MIB), MIB, 0), **v2("a/b/", str(4 * MIB), MIB, 0)}, 2 * MIB, 3 * MIB),
        ("0::/not/mounted/here\n", v2("", str(4 * MIB), MIB, 0, swap="0"), 3 * MIB, 4 * MIB),
        ("0::/\n", v2("", str(64 * MIB), 0, 0), *FREE),  # a limit beyond the machine
        (
            "4:cpu,memory:/docker/x\n0::/\n",
            {
                "cgroup/memory/memory.limit_in_bytes": str(4 * MIB),
                "cgroup/memory/memory.usage_in_bytes": str(3 * MIB),
                "cgroup/memory/memory.stat": f"active_file 7\ntotal_active_file {MIB}\n",
            },
            3 * MIB,
            5 * MIB,
        ),
        ("4:memory:/\n", {"cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, *FREE),
    ],
)
def test_the_tightest_bound_counts(tmp_path: Path, group: str, files: dict[str, str], free: int, total: int) -> None:
    """File cache is free, swap counts where the group may swap, and groups above bound those below."""
    found = machine(tmp_path, group, files)

    assert found[:2] == (free, total)
    assert ("cgroup" in found[2]) == ((free, total) != FREE)


def test_a_system_that_tells_nothing_is_not_judged(tmp_path: Path) -> None:
    """There is no such file elsewhere."""
    assert host_memory(tmp_path, tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_limit_of_the_process_counts() -> None:
    """In a process that has one."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from zmqrt.worker.host_memory import host_memory; memory = host_memory();"
        "print(memory.limit, memory.free_bytes < memory.total_bytes)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert run.stdout.split() == ["ulimit", "-v", "True"]
