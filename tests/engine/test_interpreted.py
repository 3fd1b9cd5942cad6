"""The tests of `interpreted/`, in a process of their own: what is interpreted there must not be interpreted here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# It comes with CUDA builds of torch and with `make kernels`; the interpreters of older ones fail on numpy 2.4.
pytest.importorskip("triton", minversion="3.9")

pytestmark = [pytest.mark.integration, pytest.mark.slow]
FOLDER = Path(__file__).parent / "interpreted"


def test_kernels_compute_what_torch_does_in_the_interpreter() -> None:
    """All of them pass, and this process has seen none of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["TRITON_INTERPRET"] = "1"

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=220,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
    assert "TRITON_INTERPRET" not in os.environ
