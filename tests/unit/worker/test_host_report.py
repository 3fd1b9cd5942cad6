"""What the worker reports to `zmqrt doctor` of its own: the folder of models, judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from zmqrt.worker.host_report import check_cache


def free(gibibytes: int) -> Callable[[Path], SimpleNamespace]:
    """Play a disk with so much room."""

    def usage(_place: Path) -> SimpleNamespace:
        return SimpleNamespace(free=gibibytes << 30)

    return usage


def test_a_cache_is_judged_by_where_it_is_or_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its way makes it impossible; little room is a note."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(shutil, "disk_usage", free(100))
    verdicts: list[str] = []
    for place in (tmp_path, tmp_path / "a" / "b", tmp_path / "file" / "b"):
        monkeypatch.setenv("ZMQRT_CACHE", str(place))
        verdicts.append(check_cache()[1])
    monkeypatch.setenv("ZMQRT_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", free(1))
    full = check_cache()

    assert verdicts == ["ok", "ok", "bad"]
    assert full[1] == "note"
    assert "1.0 GiB free" in full[2]
    assert "ZMQRT_CACHE" in full[3]
