"""How many cores a process may use, from files as the kernel writes them in containers of all kinds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.worker import cores
from zmqrt.worker.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process run on eight logical CPUs."""
    allow(monkeypatch, set(range(8)))


def allow(patch: pytest.MonkeyPatch, cpus: set[int]) -> None:
    """Let the process run on some logical CPUs."""
    patch.setattr(cores, "_allowed", lambda: cpus)


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files of `proc` and `sys`."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_without_quota_all_that_the_process_may_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under taskset, not what the machine has."""
    assert usable_cores(tmp_path) == 8
    allow(monkeypatch, {3, 5, 6})
    assert usable_cores(tmp_path) == 3


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    """They share its units for arithmetic."""
    topology = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)
    }

    assert usable_cores(write(tmp_path, topology)) == 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        (
            {
                "proc/self/cgroup": "0::/kube/pod/box",
                "sys/fs/cgroup/kube/pod/box/cpu.max": "max 100000",
                "sys/fs/cgroup/kube/pod/cpu.max": "300000 100000",
                "sys/fs/cgroup/kube/cpu.max": "600000 100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/docker/1f\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
    ids=[
        "whole cores of 2.5",
        "half a core",
        "no bound",
        "of a parent",
        "version 1 on a host's path",
        "version 1, none",
    ],
)
def test_a_quota_bounds_them(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """Of the group or of one above it."""
    assert usable_cores(write(tmp_path, files)) == expected


@given(text=st.text(alphabet="0129max -/:cpu,\n", max_size=40))
def test_whatever_the_files_say_there_is_a_core(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """A kernel that writes them otherwise stops no worker."""
    root = write(tmp_path_factory.mktemp("root"), {"proc/self/cgroup": text, "sys/fs/cgroup/cpu.max": text})

    assert 1 <= usable_cores(root) <= 8
