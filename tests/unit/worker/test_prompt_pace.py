"""The pace of prompts on a CPU: a machine of made-up speed is played, with a clock of its own."""

from __future__ import annotations

import bisect
import itertools
import random
import statistics
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zmqrt.worker.engines.base import TokenRequest
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.prompt_pace import LEAST_ALONE, LEAST_TOKENS, MOST_TOKENS, PromptPace
from zmqrt.worker.engines.generate.schedule import EngineStep, SchedulerLimits, SequenceStep
from zmqrt.worker.engines.mock import MockRunner, MockTiming


@dataclass(kw_only=True)
class Machine:
    """How long steps take, in seconds: a pass costs something, each row, and each token of a prompt."""

    step_s: float = 0.05
    row_s: float = 0.005
    piece_s: float = 0.004
    token_s: float = 0.001
    scatter: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    def time_of(self, running: int, prompt_tokens: int) -> float:
        """Return the time of one step."""
        seconds = self.step_s + self.row_s * running + (self.piece_s if prompt_tokens else 0.0)
        return (seconds + self.token_s * prompt_tokens) * self.rng.lognormvariate(0.0, self.scatter)

    def step(self, pace: PromptPace, running: int, prompt: int = 10**6) -> tuple[int, float]:
        """Let one step pass; return the tokens of the piece and how long it took."""
        tokens = min(pace.room(running), prompt)
        seconds = self.time_of(running, tokens)
        pace.learn(running, tokens, seconds)
        return tokens, seconds


class Measured(Machine):
    """A CPU with two threads: times of one float32 product by its rows, in times of the product of one row."""

    ROWS = (1, 2, 3, 4, 5, 9, 17, 33, 65, 129, 513)
    TIMES = (1.0, 1.05, 1.09, 2.0, 2.4, 3.4, 3.5, 3.5, 5.2, 7.3, 28.6)

    def time_of(self, running: int, prompt_tokens: int) -> float:
        """Return the time of one step; between what was measured a line is drawn."""
        rows = min(max(1, running + prompt_tokens), self.ROWS[-1])
        at = max(1, bisect.bisect_left(self.ROWS, rows))
        share = (rows - self.ROWS[at - 1]) / (self.ROWS[at] - self.ROWS[at - 1])
        return self.step_s * (self.TIMES[at - 1] + share * (self.TIMES[at] - self.TIMES[at - 1]))


SECONDS = st.floats(1e-4, 1.0)
LINEAR = st.builds(
    Machine, step_s=SECONDS, row_s=st.floats(0.0, 0.1), piece_s=st.floats(0.0, 1.0), token_s=st.floats(1e-5, 0.5)
)
MACHINES = LINEAR | st.builds(Measured, step_s=SECONDS)


def settled(machine: Machine, running: int) -> tuple[PromptPace, list[tuple[int, float]]]:
    """Let the pace get to know the machine; return it, and what 160 further steps took and how long."""
    pace = PromptPace()
    for _ in range(40):
        machine.step(pace, running)
    return pace, [machine.step(pace, running) for _ in range(160)]


def speed_over_128(machine: Machine, running: int, steps: list[tuple[int, float]]) -> float:
    """Return how fast prompts were read, over pieces of 128 tokens in every step."""
    tokens, seconds = map(sum, zip(*steps, strict=True))
    return tokens / seconds * machine.time_of(running, 128) / 128


@given(MACHINES, st.integers(1, 64))
@example(Machine(step_s=0.095, row_s=0.0, piece_s=0.0, token_s=0.0024), 1)
@example(Machine(step_s=0.05, row_s=0.0, piece_s=0.0, token_s=0.02), 1)
@example(Machine(step_s=0.1, row_s=0.0, piece_s=0.09, token_s=0.002), 1)
@example(Measured(step_s=0.22), 1)
@example(Measured(step_s=0.22), 4)
def test_neither_who_is_answered_nor_a_prompt_stands_still(machine: Machine, running: int) -> None:
    """A gap is at most two plain steps where the least piece fits in; a prompt has a quarter of its speed anywhere."""
    _, steps = settled(machine, running)

    longest = max(2 * machine.time_of(running, 0), machine.time_of(running, LEAST_TOKENS))
    assert all(seconds <= 1.001 * longest for _, seconds in steps)
    assert sum(not tokens for tokens, _ in steps) == 10, "every sixteenth is a plain one"
    assert speed_over_128(machine, running, steps) >= 0.25 * 15 / 16


@given(MACHINES)
@example(Machine(step_s=0.8, row_s=0.0, piece_s=0.0, token_s=0.02))
@example(Measured(step_s=0.22))
def test_alone_a_prompt_has_half_its_speed_at_least(machine: Machine) -> None:
    """Also where a pass takes longer than the goal however little is in it, as with weights that take long to read."""
    _, steps = settled(machine, 0)

    assert speed_over_128(machine, 0, steps) >= 0.5 * 0.999


@given(LINEAR, st.integers(1, 64))
def test_what_may_be_taken_is_taken(machine: Machine, running: int) -> None:
    """Where tokens, not the price of a piece, are most of what the goal allows."""
    goal = 0.6 * machine.time_of(running, 0)
    machine.piece_s = min(machine.piece_s, goal / 2)
    _, steps = settled(machine, running)

    could = (goal - machine.piece_s) / machine.token_s
    assert all(tokens >= min(MOST_TOKENS, int(0.5 * could)) for tokens, _ in steps if tokens)


@pytest.mark.parametrize("running", [0, 1])
@pytest.mark.parametrize("machine", [Machine(token_s=2e-4), Machine(piece_s=0.02, token_s=2e-4), Machine(step_s=0.4)])
def test_noise_does_not_stick(machine: Machine, running: int) -> None:
    """Ten steps take three times as long, since others had the cores; soon a piece is as large as before."""
    pace, steps = settled(machine, running)
    before = max(tokens for tokens, _ in steps)
    for _ in range(10):
        tokens = pace.room(running)
        pace.learn(running, tokens, 3 * machine.time_of(running, tokens))

    sizes = [machine.step(pace, running)[0] for _ in range(80)]

    assert min(size for size in sizes if size) >= LEAST_TOKENS
    assert max(sizes[-16:]) >= 0.9 * before


@given(st.integers(1, 64))
def test_the_first_steps_are_not_long_by_a_guess(running: int) -> None:
    """One plain step, one of the least pieces; from then on, what it cost is known."""
    machine = Machine(step_s=0.05, token_s=0.02)
    pace = PromptPace()

    assert machine.step(pace, running)[0] == 0, "the first step beside so many is a plain one"
    assert machine.step(pace, running)[0] == LEAST_TOKENS
    assert {machine.step(pace, running)[0] for _ in range(1000)} == {0, LEAST_TOKENS}


def test_each_number_of_answers_has_a_plain_time_of_its_own_that_is_looked_at_again() -> None:
    """Three and four are answered by turns, and steps get longer as their texts do: neither keeps an old time."""
    pace = PromptPace()
    plain: dict[int, list[int]] = {3: [], 4: []}
    for number in range(200):
        running = 3 + number % 2
        if not Machine().step(pace, running)[0]:
            plain[running].append(number)

    for numbers in plain.values():
        assert [later - earlier for earlier, later in itertools.pairwise(numbers)] == [32] * 6


@pytest.mark.parametrize("slower", [0.25, 4.0])
def test_it_follows_a_machine_that_changes(slower: float) -> None:
    """Tokens far inside a prompt cost more; another prompt begins, and they are cheap again."""
    machine = Machine(token_s=0.0004)
    pace = PromptPace()
    before = [machine.step(pace, 4)[0] for _ in range(40)][-1]
    machine.token_s *= slower

    steps = [machine.step(pace, 4) for _ in range(20)]

    assert sum(seconds > 2 * machine.time_of(4, 0) for _, seconds in steps) <= 5
    assert (max(tokens for tokens, _ in steps[8:]) > before) == (slower < 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_holds_where_times_scatter(seed: int) -> None:
    """Rows come and go, prompts are short and long, and steps scatter by 5 %: of 2,000 gaps few are above the goal."""
    rng = random.Random(seed)
    machine = Machine(scatter=0.05, rng=rng)
    still = Machine()
    pace = PromptPace()
    left, running, ratios = 0, 1, list[float]()
    for _ in range(2000):
        running = max(1, min(16, running + rng.choice((-1, 0, 0, 0, 0, 1))))
        left = left or round(2 ** rng.uniform(2, 11))
        tokens, seconds = machine.step(pace, running, left)
        left -= tokens
        ratios.append(seconds / still.time_of(running, 0))
    ratios.sort()
    print(f"seed {seed}: median {statistics.median(ratios):.2f}, p99 {ratios[-20]:.2f}, most {ratios[-1]:.2f}")

    assert ratios[-20] <= 2.0
    assert statistics.median(ratios) >= 1.4, "prompts get their share"


def test_one_long_step_does_not_stop_a_prompt() -> None:
    """Another process had the core for once: half a piece, and soon a whole one again."""
    machine = Machine(token_s=0.0003)
    pace = PromptPace()
    whole = max([machine.step(pace, 4)[0] for _ in range(40)][-2:])
    pace.learn(4, pace.room(4) or LEAST_TOKENS, 3.0)

    sizes = [machine.step(pace, 4)[0] for _ in range(10)]

    assert min(sizes[:2]) >= whole // 2 - 1 > LEAST_TOKENS
    assert sizes[-1] >= 0.9 * whole


def test_alone_a_prompt_takes_as_much_as_half_a_second_does() -> None:
    """Nobody waits for tokens, but somebody may come; a small model takes all that a product is good for."""
    middling, quick = Machine(token_s=0.002), Machine(token_s=0.0001)
    for machine, least, most in ((middling, 215, 225), (quick, MOST_TOKENS, MOST_TOKENS)):
        pace = PromptPace()
        sizes = [machine.step(pace, 0)[0] for _ in range(20)]
        assert sizes[0] == LEAST_ALONE
        assert least <= sizes[-1] <= most


# --- in the engine ---------------------------------------------------------------------------------------------------


class TimedRunner(MockRunner):
    """The toy model on a machine that moves the clock."""

    def __init__(self, kv_tokens: int, machine: Machine) -> None:
        super().__init__(kv_tokens, timing=MockTiming(step_ms=0), may_end=False, clock=lambda: 0.0)
        self.machine = machine
        self.now = 100.0

    def launch(self, step: EngineStep) -> list[SequenceStep]:
        """Let the time of a step pass."""
        pieces = sum(part.end - part.begin for part in step.parts if part.is_prompt)
        self.now += self.machine.time_of(sum(not part.is_prompt for part in step.parts), pieces)
        return super().launch(step)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> TimedRunner:
    """Make time what the runner says."""
    runner = TimedRunner(20 * 4096, Machine(scatter=0.05))
    monkeypatch.setattr(time, "monotonic", lambda: runner.now)
    return runner


def gaps(engine: GenerateEngine, runner: TimedRunner, *, prompts: int) -> list[float]:
    """Stream to four while prompts arrive, eight at a time; return the times between two tokens of those four."""
    for ticket in range(4):
        engine.submit(TokenRequest(ticket=ticket, prompt_ids=[ticket], max_new_tokens=3000, ignore_eos=True))
    seen: dict[int, float] = {}
    found: list[float] = []
    arrived = ended = 0
    while ended < prompts or len(found) < 400:
        if arrived < prompts and arrived - ended < 8:
            ids = [arrived % 256] * (40 + 300 * (arrived % 4))
            engine.submit(TokenRequest(ticket=100 + arrived, prompt_ids=ids, max_new_tokens=5, ignore_eos=True))
            arrived += 1
        for event in engine.poll(0.0):
            ended += event.ticket >= 100 and event.finish_reason is not None
            if event.ticket < 4 and event.token_ids:
                if event.ticket in seen:
                    found.append(runner.now - seen[event.ticket])
                seen[event.ticket] = runner.now
    return sorted(found)


def engine_of(runner: TimedRunner, pace: PromptPace | None) -> GenerateEngine:
    """Make an engine of twenty slots that looks for no prefixes."""
    limits = SchedulerLimits(slots=20, context=4096, chunk_tokens=128, may_reuse=False)
    return GenerateEngine(runner, kv_tokens=20 * 4096, limits=limits, pace=pace)


def test_who_is_answered_hardly_notices_prompts(runner: TimedRunner) -> None:
    """Of the gaps between tokens 99 of 100 are at most twice a plain one; with pieces of 128 tokens they are not."""
    plain = statistics.median(gaps(engine_of(runner, PromptPace()), runner, prompts=0))
    paced = gaps(engine_of(runner, PromptPace()), runner, prompts=30)
    constant = gaps(engine_of(runner, None), runner, prompts=30)

    p99 = [found[round(0.99 * len(found))] / plain for found in (paced, constant)]
    print(f"p99 of gaps in plain steps: {p99[0]:.2f} paced, {p99[1]:.2f} in pieces of 128")
    assert p99[0] <= 2.0
    assert p99[1] > 3.0
