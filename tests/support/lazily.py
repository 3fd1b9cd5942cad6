"""Modules that take long to load: each job of the suite collects every file, and runs only some of them."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def lazily(name: str) -> Any:
    """Return a module that is loaded when something of it is first asked for."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None, f"{name} is not installed"
    if name in sys.modules:
        return sys.modules[name]
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
