"""Every example runs as it stands: clients against a mock fleet, engines in a real worker."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import Stack, running

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """A broker and a mock node."""
    with running() as stack:
        yield stack


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_client_example(name: str, fleet: Stack) -> None:
    """It ends well and says something."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, "ZMQRT_BROKER": fleet.clients},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert result.stderr == ""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers import the engines."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES / "engines"))


@pytest.mark.usefixtures("engines")
def test_stream_engine_says_the_prompt_again() -> None:
    """Text in, text out."""
    with running(worker=("--engine", "stream_engine:factory")) as stack, stack.client() as client:
        with client.stream("one two three") as stream:
            chunks = list(stream)  # pieces may come together

        assert "".join(chunk.text for chunk in chunks) == "one two three "


@pytest.mark.usefixtures("engines")
def test_token_engine_says_the_prompt_backwards() -> None:
    """Without a model an id is a byte."""
    with running(worker=("--engine", "token_engine:factory")) as stack, stack.client() as client:
        assert client.infer("stressed", raw=True).text == "desserts"
        assert client.infer("stressed", raw=True, max_tokens=3).text == "des"


@pytest.mark.usefixtures("engines")
def test_batch_engine_measures_texts() -> None:
    """One vector for each text."""
    with running(worker=("--engine", "batch_engine:factory")) as stack, stack.client() as client:
        vectors = client.embed(["a", "abc"])

        assert [list(vector) for vector in vectors] == [[1.0], [3.0]]
