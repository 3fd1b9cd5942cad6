"""Tokens per second of the `generate` engine, beside static batches of transformers' `generate`.

Both run the same weights in this one process, in float32 on one thread, in turn. The load is a closed one: so many
requests at a time, until all have been answered. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from zmqrt.worker.engines.base import EngineSpec, SamplingParams, TokenEngine, TokenRequest

HERE: Final = Path(__file__).parent
_PROMPT_TOKENS: Final = (8, 96)
_NEW_TOKENS: Final = (8, 96)
_STATIC_BATCH: Final = 16
Run = Callable[[Sequence[TokenRequest], int], int]
"""Answers all requests, so many at a time; returns the tokens made."""


class Report(msgspec.Struct, frozen=True):
    """What is written to a file."""

    command: str
    versions: dict[str, str]
    cores: int
    load_average: tuple[float, float, float]
    model: str
    requests: int
    tokens_per_s: dict[str, dict[str, list[float]]]
    median_ratios: dict[str, dict[str, float]]


def make_requests(count: int, vocabulary: int, seed: int) -> list[TokenRequest]:
    """Draw requests whose lengths are log-uniform: many short ones, a few long ones, as in life."""
    rng = random.Random(seed)

    def length(bounds: tuple[int, int]) -> int:
        low, high = bounds
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    return [
        TokenRequest(
            ticket=ticket,
            prompt_ids=[rng.randrange(vocabulary) for _ in range(length(_PROMPT_TOKENS))],
            max_new_tokens=length(_NEW_TOKENS),
            ignore_eos=True,
            sampling=SamplingParams(temperature=0.0),
        )
        for ticket in range(count)
    ]


def run_engine(engine: TokenEngine, requests: Sequence[TokenRequest], at_once: int) -> int:
    """Keep so many requests in an engine until all are done."""
    waiting = list(reversed(requests))
    running = made = 0
    while waiting or running:
        while waiting and running < at_once:
            engine.submit(waiting.pop())
            running += 1
        for event in engine.poll(0.0):
            made += len(event.token_ids)
            running -= event.finish_reason is not None
    return made


def run_static(model: Any, requests: Sequence[TokenRequest], at_once: int) -> int:  # noqa: ANN401 - transformers is untyped
    """Batch in the order of arrival, pad on the left, and go on until the longest of each batch is done."""
    import torch

    made = 0
    for first in range(0, len(requests), at_once):
        batch = requests[first : first + at_once]
        width = max(len(one.prompt_ids) for one in batch)
        ids = torch.tensor([[0] * (width - len(one.prompt_ids)) + one.prompt_ids for one in batch])
        mask = torch.tensor([[0] * (width - len(one.prompt_ids)) + [1] * len(one.prompt_ids) for one in batch])
        longest = max(one.max_new_tokens for one in batch)
        with torch.inference_mode():
            model.generate(ids, attention_mask=mask, max_new_tokens=longest, min_new_tokens=longest, do_sample=False)
        made += sum(one.max_new_tokens for one in batch)  # what was asked for; the rest is thrown away
    return made


def load(path: Path, slots: int) -> tuple[dict[str, Run], int]:
    """Load the model twice."""
    import torch

    from zmqrt.worker.engines.generate.factory import factory as ours
    from zmqrt.worker.engines.generate.hf_loader import untyped

    def spec(engine: str, **options: str) -> EngineSpec:
        return EngineSpec(
            engine=engine,
            model=path.name,
            model_path=str(path),
            device="cpu",
            dtype="float32",
            max_model_len=512,
            batch_max_size=8,
            batch_max_latency_ms=50,
            slots=slots,
            options=options,
        )

    torch.set_num_threads(1)
    # Prompts are random and never come twice in a run, but they do in the next one: prefixes would be found there.
    slot_engine = ours(spec("generate", reuse="0"), lambda _phase, _percent: None)
    model = untyped("transformers").AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    runs: dict[str, Run] = {
        "generate": lambda requests, at_once: run_engine(slot_engine, requests, at_once),
        "static": lambda requests, at_once: run_static(model, requests, min(at_once, _STATIC_BATCH)),
    }
    return runs, int(model.get_input_embeddings().weight.shape[0])


def measure(
    runs: dict[str, Run], requests: Sequence[TokenRequest], at_once: int, rounds: int
) -> dict[str, list[float]]:
    """Run each in turn, again and again; return tokens per second of CPU time."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            print(f"\r{at_once} at a time, round {number + 1} of {rounds}: {name} …      ", end="", file=sys.stderr)
            began = time.process_time()
            made = run(requests, at_once)
            rates[name].append(made / (time.process_time() - began))
    print(file=sys.stderr)
    return rates


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return the median over the rounds of ours over each other."""
    return {
        name: round(statistics.median(a / b for a, b in zip(rates["generate"], theirs, strict=True)), 3)
        for name, theirs in rates.items()
        if name != "generate"
    }


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True, help="A known name, or a directory.")
@click.option("--at-once", "depths", multiple=True, type=int, default=(1, 8, 32), show_default=True, help="Requests.")
@click.option("--requests", "count", default=48, show_default=True, help="Requests of each run; fewer at 1 at a time.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each, in turn.")
@click.option("--seed", default=1, show_default=True, help="Of lengths and prompts.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(*, model: str, depths: tuple[int, ...], count: int, rounds: int, seed: int, save: bool) -> None:
    """Measure tokens per second of CPU time: another process on this machine costs wall time, and not these figures.

    Static batches of at most 16 are formed in the order of arrival; what they compute beyond what was asked for counts
    for nothing. Trust the ratios of one run.
    """
    from zmqrt.worker.model_sources import resolve

    files = resolve(model, progress=lambda _phase, _percent: None)
    runs, vocabulary = load(files.path, max(depths))
    table = Table(title=f"{model}, float32, one thread: tokens/s (median of {rounds}, lowest to highest)")
    for name in ("at once", *runs, "/ static"):
        table.add_column(name, justify="right")
    all_rates: dict[str, dict[str, list[float]]] = {}
    for at_once in depths:
        requests = make_requests(count if at_once > 1 else max(4, count // 6), vocabulary, seed)
        rates = all_rates[str(at_once)] = measure(runs, requests, at_once, rounds)
        cells = [f"{statistics.median(one):.1f} ({min(one):.1f} to {max(one):.1f})" for one in rates.values()]
        over = ratios(rates)
        table.add_row(str(at_once), *cells, f"{over['static']:.2f}")
    Console(width=max(120, Console().width)).print(table)
    report = Report(
        command=" ".join(["python", *sys.argv]),
        versions={name: version(name) for name in ("zmqrt", "torch", "transformers")}
        | {"python": platform.python_version()},
        cores=os.cpu_count() or 0,
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0),
        model=model,
        requests=count,
        tokens_per_s=all_rates,
        median_ratios={depth: ratios(rates) for depth, rates in all_rates.items()},
    )
    folder = HERE / ("results" if save else "out")
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("engine-%Y%m%d-%H%M%S.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    click.echo(f"written to {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
