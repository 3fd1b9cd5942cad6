"""What serving costs beside the model: CPU time of agent and engine loop for a step of the mock with every row taken.

A real broker, a real node with one device, and a client in a process of its own that keeps all rows busy with streams.
What the mock's runner takes for the same steps is measured in this process and taken off. docs/benchmarks.md says how
to read the figures.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import click
import msgspec
import psutil
from processes import BROKER, HERE, Ready, start, tell
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.table import Table
from stream_readers import MAX_TOKENS

from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate import schedule
from zmqrt.worker.engines.generate.kv_cache import KvCache
from zmqrt.worker.engines.generate.schedule import Scheduler, SchedulerLimits
from zmqrt.worker.engines.mock import MockRunner, MockTiming

_CONTEXT: Final = MAX_TOKENS + 1000
_MOCK_STEPS: Final = 200
"""Steps of the mock alone beside each window."""
GOAL_MS: Final = 1.0


class Window(msgspec.Struct, frozen=True):
    """One window: milliseconds of CPU time for a step, of all threads of a process.

    `loop_ms` is the engine process without the mock's own step, `mock_ms`.
    """

    steps: float
    agent_ms: float
    loop_ms: float
    mock_ms: float

    @property
    def serving_ms(self) -> float:
        """All that is not the model."""
        return self.agent_ms + self.loop_ms


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file: where it was measured, and every window."""

    rows: int
    step_ms: float
    median_serving_ms: float
    windows: list[Window]


class Mock:
    """The mock's runner with all rows taken, and nothing of the engine around it."""

    def __init__(self, rows: int, step_ms: float) -> None:
        kv_tokens = rows * 4096
        self._runner = MockRunner(kv_tokens, timing=MockTiming(step_ms=step_ms), may_end=True, clock=time.monotonic)
        limits = SchedulerLimits(slots=rows, context=4096, chunk_tokens=2048)
        self._scheduler = Scheduler(KvCache(kv_tokens), limits)
        for ticket in range(rows):
            request = TokenRequest(
                ticket=ticket,
                prompt_ids=list(f"stream {ticket}".encode()),
                max_new_tokens=4000,
                ignore_eos=True,
                sampling=SamplingParams(seed=ticket),
            )
            self._scheduler.submit(schedule.Sequence.of(request, frozenset(), request.max_new_tokens))
        self._step_s()  # the prompts

    def cpu_ms(self) -> float:
        """Return the CPU time of one step: launching it, waiting for it and taking what it drew."""
        return 1000 * statistics.fmean(self._step_s() for _ in range(_MOCK_STEPS))

    def _step_s(self) -> float:
        step = self._scheduler.plan()
        assert step is not None
        begun = time.thread_time()
        self._runner.launch(step)
        drawn = self._runner.collect(1.0)
        took_s = time.thread_time() - begun
        assert drawn is not None
        self._scheduler.finish(step, drawn.tokens)
        return took_s


class Node:
    """A broker, a node and the client that keeps it busy."""

    def __init__(self, stack: contextlib.ExitStack, rows: int, step_ms: float, profile: Path | None) -> None:
        _, out = start(stack, *BROKER)
        endpoints = msgspec.json.decode(out.readline(), type=Ready).endpoints
        profiled = ("-m", "cProfile", "-o", str(profile)) if profile else ()
        agent, out = start(
            stack,
            *(*profiled, "-m", "zmqrt.worker", "--broker", endpoints["workers"]),
            *("--engine", "mock", "--devices", "0", "--slots", str(rows), "--max-model-len", str(_CONTEXT)),
            *("--engine-opt", f"step_ms={step_ms}", "--log-format", "json", "--log-level", "error"),
            *("--node-max-capacity", str(rows), "--drain-timeout", "0s"),
        )
        if not out.readline():
            raise click.ClickException("the node did not start; what it wrote stands above")
        self._agent = psutil.Process(agent.pid)
        self._client, self._said = start(stack, str(HERE / "stream_readers.py"), endpoints["clients"], str(rows))
        if self._said.readline().strip() != "ready":
            raise click.ClickException("the streams did not begin; what their reader wrote stands above")
        (self._engine,) = self._agent.children()
        self._rows = rows

    def measure(self, seconds: float, mock: Mock) -> Window:
        """Look twice, `seconds` apart, while every row runs; the mock alone comes after it."""
        tokens, agent_s, engine_s = self._look()
        time.sleep(seconds)
        made, agent_then_s, engine_then_s = self._look()
        steps = statistics.fmean(then - before for then, before in zip(made, tokens, strict=True))
        if steps < 1:
            raise click.ClickException("the streams do not go on")
        mock_ms = mock.cpu_ms()
        return Window(
            steps=steps,
            agent_ms=1000 * (agent_then_s - agent_s) / steps,
            loop_ms=1000 * (engine_then_s - engine_s) / steps - mock_ms,
            mock_ms=mock_ms,
        )

    def _look(self) -> tuple[list[int], float, float]:
        """Return the tokens of each stream, a step each, and the CPU seconds so far of agent and engine process."""
        tell(self._client, "how many?")
        return _tokens(self._said, self._rows), _cpu_s(self._agent), _cpu_s(self._engine)


def _tokens(said: IO[str], rows: int) -> list[int]:
    line = said.readline()
    if not line:
        raise click.ClickException("the reader of the streams has ended; what it wrote stands above")
    made = msgspec.json.decode(line, type=list[int])
    assert len(made) == rows
    return made


def _cpu_s(process: psutil.Process) -> float:
    """Sum up the scheduler's own count, in nanoseconds: utime and stime move by 10 ms, a twentieth of a window."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def make_table(windows: Sequence[Window]) -> Table:
    """Put medians into a table; lowest and highest in brackets."""
    table = Table(title=f"CPU ms for a step: median of {len(windows)} windows (lowest to highest)")
    table.add_column("what")
    table.add_column("ms", justify="right", no_wrap=True)
    parts = {
        "agent": [one.agent_ms for one in windows],
        "engine loop": [one.loop_ms for one in windows],
        "both: what serving costs": [one.serving_ms for one in windows],
        "the mock's own step (not in it)": [one.mock_ms for one in windows],
    }
    for name, values in parts.items():
        table.add_row(name, f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    return table


@click.command()
@click.option("--rows", default=32, show_default=True, type=click.IntRange(1, 256), help="Streams, and slots.")
@click.option("--step-ms", default=10.0, show_default=True, type=click.FloatRange(1.0), help="Length of a step.")
@click.option("--windows", default=5, show_default=True, type=click.IntRange(1, 15), help="How often to look.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.5), help="Length of a window.")
@click.option("--profile", type=click.Path(path_type=Path), help="Run the agent under cProfile, and write this file.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(*, rows: int, step_ms: float, windows: int, seconds: float, profile: Path | None, save: bool) -> None:
    """Measure the CPU time of agent and engine loop for a step in which every row runs.

    All threads of both processes count, as the kernel tells it (Linux alone does); what the mock computes does not.
    With --profile the figures are those of a profiled agent, which is slower.
    """
    if not sys.platform.startswith("linux"):
        raise click.ClickException("CPU time is read from /proc, which only Linux has")
    found: list[Window] = []
    with contextlib.ExitStack() as stack:
        node, mock = Node(stack, rows, step_ms, profile), Mock(rows, step_ms)
        for number in range(windows):
            click.echo(f"window {number + 1} of {windows}", err=True)
            found.append(node.measure(seconds, mock))
    Console(width=max(100, Console().width)).print(make_table(found))
    report = Report(
        **circumstances(),
        rows=rows,
        step_ms=step_ms,
        median_serving_ms=round(statistics.median(one.serving_ms for one in found), 3),
        windows=found,
    )
    path = write(report, "serving", is_kept=save)
    verdict = "within" if report.median_serving_ms <= GOAL_MS else "over"
    click.echo(f"{report.median_serving_ms} ms, {verdict} the goal of {GOAL_MS:.0f}; load {report.load_average[0]:.1f}")
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
