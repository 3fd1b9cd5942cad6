"""How many steps pass between a cancel and the moment in which its slot is another's, as a histogram.

The toy model under the scheduler of the `generate` engine, every slot taken; requests are cancelled while they wait for
their first step, in the middle of their prompt and while they get tokens, with one, two and three steps under way.
tests/unit/worker/test_generate_schedule.py runs the same load and allows nothing but the next step.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import click
from rich.console import Console
from rich.table import Table

from zmqrt.worker.engines.base import EngineFullError, SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.engine import Drawn, Runner
from zmqrt.worker.engines.generate.schedule import EngineStep, SequenceStep
from zmqrt.worker.engines.mock import MockEngine, MockTiming

Phase = Literal["waiting", "prompt", "decoding"]
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
DEPTHS: Final = (1, 2, 3)
_SLOTS: Final = 6
_LOOK_S: Final = 0.0004
"""How far a look moves the clock; a step takes 1 ms, so cancels come in the middle of steps."""


@dataclass
class Found:
    """What came of the cancels in one phase: steps planned until the slot was used again, and those under way then."""

    steps: Counter[int] = field(default_factory=Counter[int])
    under_way: Counter[int] = field(default_factory=Counter[int])


class Watched:
    """A runner that counts the steps which are under way, and looks with each new one how many requests still wait."""

    def __init__(self, engine: MockEngine) -> None:
        self._engine = engine
        self._runner: Runner = engine.runner
        self.vocabulary = self._runner.vocabulary
        self.under_way = 0
        self.waiting: list[int] = []

    def launch(self, step: EngineStep) -> list[SequenceStep]:
        """Count, look, and pass on."""
        self.under_way += 1
        self.waiting.append(self._engine.stats().waiting)
        return self._runner.launch(step)

    def collect(self, timeout_s: float) -> Drawn | None:
        """Pass on, and count."""
        drawn = self._runner.collect(timeout_s)
        self.under_way -= drawn is not None
        return drawn

    def close(self) -> None:
        """Pass on."""
        self._runner.close()


class Crowd:
    """As many requests as there are slots, at any time."""

    def __init__(self, depth: int, rng: random.Random) -> None:
        self._rng = rng
        self._now = 0.0
        self._engine = MockEngine(
            slots=_SLOTS, context=128, chunk_tokens=24, depth=depth, timing=MockTiming(step_ms=1.0), clock=self._clock
        )
        self._runner = self._engine.runner = Watched(self._engine)
        self._phases: dict[int, Phase] = {}
        self._ticket = 0

    def _clock(self) -> float:
        self._now += _LOOK_S
        return self._now

    def cancel_one(self, phase: Phase, found: Found) -> None:
        """Go on until somebody is in that phase, cancel it, and count the steps until nobody waits for a slot."""
        self._fill()
        while phase not in self._phases.values():
            self._poll()
            self._fill()
        victim = self._rng.choice([ticket for ticket, its in self._phases.items() if its == phase])
        found.under_way[self._runner.under_way] += 1
        self._engine.cancel(victim)
        del self._phases[victim]
        self._runner.waiting.clear()
        while not self._submit():
            self._poll()
        late = len(self._runner.waiting)
        while 0 not in self._runner.waiting[late:]:
            self._poll()
        found.steps[self._runner.waiting.index(0, late) + 1] += 1
        for _ in range(self._rng.randrange(4)):
            self._poll()

    def _fill(self) -> None:
        while len(self._phases) < _SLOTS and self._submit():
            pass

    def _submit(self) -> bool:
        """Ask for something new; False if the engine is full."""
        request = TokenRequest(
            ticket=self._ticket,
            prompt_ids=[self._rng.randrange(256) for _ in range(self._rng.randint(1, 60))],
            max_new_tokens=self._rng.randint(1, 20),
            ignore_eos=True,
            sampling=SamplingParams(seed=self._ticket),
        )
        try:
            self._engine.submit(request)
        except EngineFullError:
            return False
        self._phases[self._ticket] = "waiting"
        self._ticket += 1
        return True

    def _poll(self) -> None:
        events = self._engine.poll(0.0)
        for ticket, phase in self._phases.items():
            self._phases[ticket] = "prompt" if phase == "waiting" else phase
        for event in events:
            if event.ticket in self._phases:
                self._phases[event.ticket] = "decoding"
                if event.finish_reason is not None:
                    del self._phases[event.ticket]


def measure(cancels: int, seed: int) -> dict[tuple[int, Phase], Found]:
    """Cancel so many requests in each phase at each depth."""
    results: dict[tuple[int, Phase], Found] = {}
    for depth in DEPTHS:
        rng = random.Random(seed + depth)
        crowd = Crowd(depth, rng)
        found: dict[Phase, Found] = {phase: Found() for phase in PHASES}
        for _ in range(cancels):
            for phase in rng.sample(PHASES, len(PHASES)):
                crowd.cancel_one(phase, found[phase])
        for phase, one in found.items():
            results[depth, phase] = one
    return results


def show(counter: Counter[int]) -> str:
    """Write a histogram on a line: `1: 480, 2: 20`."""
    return ", ".join(f"{steps}: {count}" for steps, count in sorted(counter.items()))


@click.command()
@click.option("--cancels", default=500, show_default=True, type=click.IntRange(1), help="In each phase at each depth.")
@click.option("--seed", default=1, show_default=True, help="Of lengths, victims and moments.")
def main(*, cancels: int, seed: int) -> None:
    """Count the steps that are planned from a cancel on, up to the one in which its slot is another request's.

    1 is the very next step. Steps under way at that moment had been given to the device before; they are not counted,
    and what they draw for the cancelled request is dropped.
    """
    table = Table(title=f"steps until a cancelled request's slot is used again: how often ({cancels} cancels a row)")
    for name in ("steps ahead", "cancelled while", "next used in step", "under way then"):
        table.add_column(name, no_wrap=True)
    for (depth, phase), found in measure(cancels, seed).items():
        table.add_row(str(depth), phase, show(found.steps), show(found.under_way))
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    main()
