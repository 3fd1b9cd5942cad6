"""How long those who are being answered wait between two tokens while prompts are read, on a CPU.

One model twice in this process, once with pieces of prompts as measured times allow, once with pieces of a constant
length; both are asked the same, in turn. Some answers are streamed all the time. At first nothing else happens: that is
the plain step. Then prompts arrive, the next as soon as the one before it has its answer, so that every step has a
piece to take: the hardest case. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click
from bench_engine import spec_of
from rich.console import Console
from rich.table import Table
from rounds import at_share

from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.model_sources import resolve

_GREEDY: Final = SamplingParams(temperature=0.0)
_PROMPT: Final = 10**6
"""Tickets of prompts that arrive begin here."""


@dataclass(frozen=True)
class Plan:
    """What a round is: steps with prompts (half as many before, without), lengths of prompts, and which time counts."""

    steps: int
    lengths: tuple[int, int]
    clock: Callable[[], float]


@dataclass
class Gaps:
    """What was measured of one engine at one number of streams; times in seconds, one entry a round."""

    plain_s: list[float] = field(default_factory=list[float])
    p50_s: list[float] = field(default_factory=list[float])
    p99_s: list[float] = field(default_factory=list[float])
    most_s: list[float] = field(default_factory=list[float])
    prompt_tokens_per_s: list[float] = field(default_factory=list[float])

    def row(self) -> Iterator[str]:
        """Give medians, and p99 over the plain step of its own round with its spread."""
        over = [p99 / plain for p99, plain in zip(self.p99_s, self.plain_s, strict=True)]
        for times in (self.plain_s, self.p50_s, self.p99_s, self.most_s):
            yield f"{1e3 * statistics.median(times):.0f}"
        yield f"{statistics.median(over):.2f} ({min(over):.2f} to {max(over):.2f})"
        yield f"{statistics.median(self.prompt_tokens_per_s):.0f}"


class Streams:
    """Answers that never end, and when each had its last token."""

    def __init__(
        self, engine: GenerateEngine, count: int, rng: random.Random, vocabulary: int, clock: Callable[[], float]
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._rng = rng
        self._vocabulary = vocabulary
        self._prompts = 0
        self._count = count
        for ticket in range(count):
            self._submit(ticket, 16, 4000)
        self._last_at: dict[int, float] = {}
        self.gaps_s: list[float] = []
        while len(self._last_at) < count:
            self._poll()

    def _submit(self, ticket: int, length: int, tokens: int) -> None:
        ids = [self._rng.randrange(self._vocabulary) for _ in range(length)]
        request = TokenRequest(ticket=ticket, prompt_ids=ids, max_new_tokens=tokens, ignore_eos=True, sampling=_GREEDY)
        self.engine.submit(request)

    def _poll(self) -> int:
        """Let one step happen; return how many prompts have their answer."""
        ended = 0
        events = self.engine.poll(0.0)
        now = self._clock()
        for event in events:
            if event.ticket >= _PROMPT:
                ended += event.finish_reason is not None
            elif event.token_ids:
                if event.ticket in self._last_at:
                    self.gaps_s.append(now - self._last_at[event.ticket])
                self._last_at[event.ticket] = now
        return ended

    def run(self, steps: int, lengths: tuple[int, int] | None = None) -> tuple[list[float], int]:
        """Go on for so many steps; with lengths, prompts arrive. Return gaps, and tokens of prompts that were read."""
        self.gaps_s = []
        before, ended = self.engine.counts.prompt_tokens, 1
        for _ in range(steps):
            if lengths and ended:
                self._prompts += 1
                self._submit(_PROMPT + self._prompts, round(math.exp(self._rng.uniform(*map(math.log, lengths)))), 2)
            ended = self._poll()
        self.engine.cancel(_PROMPT + self._prompts)
        return sorted(self.gaps_s), self.engine.counts.prompt_tokens - before

    def close(self) -> None:
        """Take them all back."""
        for ticket in range(self._count):
            self.engine.cancel(ticket)
        while self.engine.stats().running:
            self.engine.poll(0.0)


def measure(plan: Plan, engine: GenerateEngine, streams: int, seed: int, into: Gaps) -> None:
    """Measure one round."""
    vocabulary = 512  # of the smallest model; which ids they are makes no difference
    running = Streams(engine, streams, random.Random(seed), vocabulary, plan.clock)
    plain, _ = running.run(plan.steps // 2)
    began = plan.clock()
    gaps, read = running.run(plan.steps, plan.lengths)
    into.prompt_tokens_per_s.append(read / (plan.clock() - began))
    running.close()
    into.plain_s.append(statistics.median(plain))
    into.p50_s.append(statistics.median(gaps))
    into.p99_s.append(at_share(gaps, 0.99))
    into.most_s.append(gaps[-1])


def load(path: Path, slots: int, threads: int, **options: str) -> GenerateEngine:
    """Load the model as a worker does."""
    most = 8192 if "tiny" not in path.name else 0
    spec = spec_of(path, slots, threads, max_model_len=most, **options)
    return factory(spec, lambda _phase, _percent: None)


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True, help="A known name, or a directory.")
@click.option("--streams", multiple=True, type=int, default=(1, 8), show_default=True, help="Answers under way.")
@click.option("--threads", default=1, show_default=True, help="Of each engine.")
@click.option("--constant", default=128, show_default=True, help="Tokens of a piece, of the other engine.")
@click.option("--lengths", nargs=2, type=int, default=(64, 1024), show_default=True, help="Of prompts, log-uniform.")
@click.option(
    "--steps", default=100, show_default=True, help="Of each run with prompts; before it half as many without."
)
@click.option("--wall", is_flag=True, help="Count time on the wall, not CPU time of this process.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each, in turn.")
@click.option("--seed", default=1, show_default=True, help="Of lengths and prompts.")
def main(
    *,
    model: str,
    streams: tuple[int, ...],
    threads: int,
    constant: int,
    lengths: tuple[int, int],
    steps: int,
    wall: bool,
    rounds: int,
    seed: int,
) -> None:
    """Measure gaps between tokens (milliseconds) with prompts arriving, over the plain step of the same round.

    With one thread the CPU time of this process is what a step takes on a core that nobody else uses.
    """
    plan = Plan(steps, lengths, time.perf_counter if wall else time.process_time)
    path = resolve(model, progress=lambda _phase, _percent: None).path
    slots = max(streams) + 4
    engines = {
        "measured": load(path, slots, threads),
        f"pieces of {constant}": load(path, slots, threads, chunk=str(constant)),
    }
    versions = " ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    table = Table(
        title=f"{model}, float32, {threads} threads, {versions}, Python {platform.python_version()}; milliseconds"
    )
    for name in ("streams", "pieces", "plain", "p50", "p99", "most", "p99 / plain (spread)", "prompt tokens/s"):
        table.add_column(name, justify="right")
    for count in streams:
        found = {name: Gaps() for name in engines}
        for number in range(rounds):
            for name, engine in engines.items():
                print(f"\r{count} streams, round {number + 1} of {rounds}: {name} …      ", end="", file=sys.stderr)
                measure(plan, engine, count, seed + number, found[name])
        for name, gaps in found.items():
            table.add_row(str(count), name, *gaps.row())
            print(f"\r{count} streams, {name}: {' | '.join(gaps.row())}", file=sys.stderr)
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    main()
