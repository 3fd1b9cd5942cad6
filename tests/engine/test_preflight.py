"""What is asked of a device before a model is loaded: real files on this machine, and a card that a stand-in plays."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from support import broken_models as broken
from support.engines import describe
from support.tiny import silent, tiny_model
from zmqrt.worker.engines.base import CannotLoadError
from zmqrt.worker.engines.generate import preflight
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.oom import OutOfMemoryError

pytestmark = pytest.mark.integration
TWO_TEBIBYTES = 1 << 19


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Write a model of which the disk holds next to nothing."""
    model = tiny_model(tmp_path, "layers=1,hidden=32")
    broken.enlarge(model, TWO_TEBIBYTES)
    return model


def test_a_model_larger_than_the_machine_is_refused_for_good(large: Path) -> None:
    """No second try could help."""
    with pytest.raises(CannotLoadError, match=r"it needs 2048\.0 GiB .* are free on cpu"):
        factory(describe(large), silent)


def test_whoever_knows_better_goes_on(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the same words as a warning."""
    preflight.check_memory(describe(large), spare_bytes=0, must_fit=False)

    assert "too little memory to load" in caplog.text


@pytest.mark.parametrize(
    ("free_mib", "total_mib", "error"),
    [(1100, 8192, None), (512, 8192, OutOfMemoryError), (512, 512, CannotLoadError)],
)
def test_a_card_is_asked_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_mib: int,
    total_mib: int,
    error: type[Exception] | None,
) -> None:
    """Where others hold its memory it is tried again; where it is too small it is not."""

    def mem_get_info(_device: str) -> tuple[int, int]:
        return free_mib << 20, total_mib << 20

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    spec = describe(tiny_model(tmp_path, "layers=1,hidden=32"), device="cuda:0")
    if error is None:
        preflight.check_memory(spec, spare_bytes=1 << 30, must_fit=True)
        return
    with pytest.raises(error, match=r"1\.0 GiB to compute in\); 512 MiB of .* are free on cuda:0"):
        preflight.check_memory(spec, spare_bytes=1 << 30, must_fit=True)


def test_what_fits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With what was counted."""
    with caplog.at_level(logging.INFO):
        preflight.check_memory(describe(tiny_model(tmp_path)), spare_bytes=0, must_fit=True)

    assert "weights as float32" in caplog.text


def test_damaged_files_are_left_to_the_loader(tmp_path: Path) -> None:
    """It names what is wrong with them."""
    model = tiny_model(tmp_path, "layers=1,hidden=32")
    broken.truncate(model / broken.WEIGHTS)

    preflight.check_memory(describe(model), spare_bytes=0, must_fit=True)
