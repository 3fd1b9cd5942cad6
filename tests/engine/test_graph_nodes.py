"""How many nodes a recorded step has: at small batches their number is time, and a new one is easily overlooked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
SCRIPT = Path(__file__).parents[2] / "bench" / "graph_nodes.py"


def test_steps_have_no_more_nodes_than_they_are_to_have() -> None:
    """Llama and Qwen 3, plain and shaped, counted where there is neither a GPU nor Triton."""
    ran = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=120)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = re.findall(r"(.+), (.+) attention, (.+): (\d+) nodes a layer, (\d+) outside", ran.stdout)
    totals = {tuple(names): (int(layer), int(outside)) for *names, layer, outside in found}
    for shape in ("llama 1B", "llama 8B", "qwen3 8B"):
        (layer, plain), (_, shaped) = totals[shape, "own", "plain"], totals[shape, "own", "shaped"]
        assert 4 < layer <= 10
        assert 4 < plain <= shaped <= min(12, plain + 3)
        assert totals[shape, "torch's", "plain"] == (layer + 3, plain - 1)
