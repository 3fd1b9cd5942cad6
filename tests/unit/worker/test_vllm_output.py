"""What vLLM prints while it loads is passed on and understood."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zmqrt.worker.engines.vllm_output import LoadOutput, error_of, progress_of


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        ("Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:03<00:03,  1.12s/it]", ("loading", 50.0)),
        ("(Worker_TP0 pid=71) Loading safetensors checkpoint shards: 100% Completed | 1/1", ("loading", 100.0)),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  33%|###   | 17/51", ("warming", 33.0)),
        ("(EngineCore pid=9) INFO 11-30 12:17:24 [utils.py:347] Using 90% of memory", None),
        ("INFO 12:17 [kv_cache_utils.py:2327] Maximum concurrency for 512 tokens per request: 45.50x", None),
        ("", None),
    ],
)
def test_a_bar_is_progress_and_nothing_else_is(line: str, heard: tuple[str, float] | None) -> None:
    """Lines as they were seen."""
    assert progress_of(line) == heard


def test_the_error_of_a_traceback_is_found() -> None:
    """Behind the prefix that vLLM puts before each line."""
    line = "(EngineCore pid=9) ERROR 11-30 12:17:24 [core.py:9] torch.OutOfMemoryError: CUDA out of memory. Tried to"

    assert error_of(line) == "torch.OutOfMemoryError: CUDA out of memory. Tried to"
    assert error_of("(EngineCore pid=9) ERROR 11-30 [core.py:9] Traceback (most recent call last):") == ""


def test_lines_are_passed_on_and_bars_are_not(capfd: pytest.CaptureFixture[str]) -> None:
    """However they are cut; the first error is kept, since those after it follow from it."""
    heard: list[tuple[str, float]] = []
    output = LoadOutput(lambda phase, percent: heard.append((phase, percent)))
    output.take(b"hello\nLoading shards:  10% Comp")
    output.take(b"leted\rLoading shards: 100% Completed\nValueError: no room\nRuntime")
    output.take(b"Error: see above\n")

    assert heard == [("loading", 10.0), ("loading", 100.0)]
    assert output.error == "ValueError: no room"
    assert capfd.readouterr().err == "hello\nValueError: no room\nRuntimeError: see above\n"


def test_processes_print_into_it_also_when_we_no_longer_do() -> None:
    """Who was started meanwhile keeps the pipe, and we have our own output back."""
    code = """
import subprocess, sys
from zmqrt.worker.engines.vllm_output import LoadOutput
output = LoadOutput(lambda phase, percent: print(phase, percent, flush=True))
said = "import sys; sys.stdin.read(); print('Loading shards: 50% Completed'); print('ours')"
with output.captured():
    child = subprocess.Popen([sys.executable, "-c", said], stdin=subprocess.PIPE)
print("mine", flush=True)
child.communicate(b"")
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [process.stdout.readline() for _ in range(2)] == ["mine\n", "loading 50.0\n"]
        assert process.stderr.readline() == "ours\n"
