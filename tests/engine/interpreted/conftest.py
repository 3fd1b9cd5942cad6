"""Tests of kernels in Triton's interpreter, which a process has for all of its kernels or for none.

Triton reads TRITON_INTERPRET where a kernel is defined. A process with tests of a real GPU must never have it, so
nothing here is collected without it: `test_interpreted.py` gives these tests a process of their own, as `make kernels`
does.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter (3.9) keeps bfloat16 as uint16, and multiplies matrices of it as integers."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    language: Any = importlib.import_module("triton.language")
    right = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, left: Any, other: Any, *rest: Any) -> Any:
        factors = [
            builder.create_fp_ext(factor, language.float32) if factor.dtype.scalar == language.bfloat16 else factor
            for factor in (left, other)
        ]
        return right(builder, *factors, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
