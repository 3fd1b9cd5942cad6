"""Agents' libraries as they are, in an environment of their own: one round trip of a tool each (`make test-sdks`).

The programs in tests/agents are what their users would write. Each asks whole and streamed, runs the tool that is
called, and prints the answers and what the tool was asked.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from support.stack import Process, running

PYTHON = os.environ.get("SDKS_PYTHON", "")
PROGRAMS = Path(__file__).resolve().parents[1] / "agents"
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
ANSWER = "No rain in Zürich."
MODULES = {
    "pydantic_ai": 2,
    "openai_agents": 4,
    "langchain": 2,
    "litellm": 4,
}
"""How often each program asks."""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.sdks,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON, reason="SDKS_PYTHON names no Python of an environment with zmqrt[sdks]"),
]


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Generator[Process]:
    """A node that calls the tool first, then speaks."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps([CALLED, ANSWER]))
    with running(worker=("--engine-opt", f"script={script}", "--devices", "0")) as stack:
        yield stack.bridge()


def run(program: str, bridge: Process) -> dict[str, Any]:
    """Run a program and return what it printed last."""
    done = subprocess.run(
        [PYTHON, str(PROGRAMS / f"{program}_weather.py"), bridge.endpoints["http"]],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it waits for a list of prices from elsewhere
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("program", MODULES)
def test_a_library_calls_a_tool_and_tells_what_it_returned(program: str, bridge: Process) -> None:
    """Whole and streamed, by each API that it speaks."""
    told = run(program, bridge)

    assert told["answers"] == [ANSWER] * MODULES[program]
    assert told["asked"] == ["Zürich"] * MODULES[program]


def test_instructor_gets_its_object(bridge: Process) -> None:
    """By a call that must be, so the grammar decides what is in it, and not the script."""
    told = run("instructor", bridge)

    assert {*told["answers"]} <= {"Bern", "Zürich"}
    assert {*map(type, told["asked"])} == {bool}
