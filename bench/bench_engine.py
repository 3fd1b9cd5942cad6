"""Tokens per second of CPU time of the `generate` engine, beside transformers' own ways and vLLM.

All run the same weights in float32, in turn: static batches of transformers' `generate` and its continuous batching in
this process, vLLM (if asked for, with the Python of an environment that has it) in one of its own. The load is a closed
one: so many requests at a time, until all have been answered. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import subprocess
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
Run = Callable[[Sequence[TokenRequest], int], tuple[int, float]]
"""Answers all requests, so many at a time; returns the tokens made, and the seconds of CPU that it took."""


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


def run_continuous(model: Any, requests: Sequence[TokenRequest], at_once: int) -> int:  # noqa: ANN401
    """Let transformers' own continuous batching answer them, so many at a time."""
    from zmqrt.worker.engines.generate.hf_loader import untyped

    configuration: Any = untyped("transformers.generation.configuration_utils")
    # What it takes by itself is for GPUs: nine tenths of all memory, and a warm-up that fills it.
    pool = configuration.ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=512)
    asked = configuration.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    waiting, running, made = list(reversed(requests)), 0, 0
    with model.continuous_batching_context_manager(
        generation_config=asked, continuous_batching_config=pool, warmup=False, timeout=5
    ) as manager:
        while waiting or running:
            while waiting and running < at_once:
                one = waiting.pop()
                manager.add_request(one.prompt_ids, str(one.ticket), max_new_tokens=one.max_new_tokens)
                running += 1
            result = manager.get_result(timeout=1)
            if not manager.is_running():
                raise RuntimeError("the thread of transformers' continuous batching has ended")
            if result is not None and result.is_finished():
                running -= 1
                made += len(result.generated_tokens)
    return made


def of_process(run: Callable[[Sequence[TokenRequest], int], int]) -> Run:
    """Measure what runs in this process."""

    def measured(requests: Sequence[TokenRequest], at_once: int) -> tuple[int, float]:
        began = time.process_time()
        made = run(requests, at_once)
        return made, time.process_time() - began

    return measured


class Vllm:
    """vLLM in a process of its own."""

    def __init__(self, python: str, model: Path, slots: int, threads: int) -> None:
        command = [python, str(HERE / "vllm_engine.py"), str(model), str(slots), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(self._read(), file=sys.stderr)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("vLLM has ended; see above")
        return line.strip()

    def run(self, requests: Sequence[TokenRequest], at_once: int) -> tuple[int, float]:
        """Answer requests."""
        assert self._process.stdin is not None
        order = {"requests": [(one.prompt_ids, one.max_new_tokens) for one in requests], "at_once": at_once}
        self._process.stdin.write(msgspec.json.encode(order).decode() + "\n")
        self._process.stdin.flush()
        made, cpu_s = msgspec.json.decode(self._read(), type=tuple[int, float])
        return made, cpu_s


def spec_of(path: Path, slots: int, threads: int, *, max_model_len: int = 512, **options: str) -> EngineSpec:
    """Describe an engine on the CPU, as a worker does.

    Prompts are random and never come twice in a run, but they do in the next one: prefixes would be found there.
    """
    return EngineSpec(
        engine="generate",
        model=path.name,
        model_path=str(path),
        device="cpu",
        dtype="float32",
        max_model_len=max_model_len,
        batch_max_size=8,
        batch_max_latency_ms=50,
        slots=slots,
        options={"threads": str(threads), "reuse": "0", **options},
    )


def load(path: Path, slots: int, threads: int) -> tuple[dict[str, Run], int]:
    """Load the model three times."""
    import torch

    from zmqrt.worker.engines.generate.factory import factory as ours
    from zmqrt.worker.engines.generate.hf_loader import untyped

    torch.set_num_threads(threads)
    slot_engine = ours(spec_of(path, slots, threads), lambda _phase, _percent: None)
    static, continuous = (
        untyped("transformers").AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for _ in range(2)
    )
    static.generation_config.eos_token_id = None
    runs: dict[str, Run] = {
        "generate": of_process(lambda requests, at_once: run_engine(slot_engine, requests, at_once)),
        "static": of_process(lambda requests, at_once: run_static(static, requests, min(at_once, _STATIC_BATCH))),
        "continuous": of_process(lambda requests, at_once: run_continuous(continuous, requests, at_once)),
    }
    return runs, int(static.get_input_embeddings().weight.shape[0])


def measure(
    runs: dict[str, Run], requests: Sequence[TokenRequest], at_once: int, rounds: int
) -> dict[str, list[float]]:
    """Run each in turn, again and again; return tokens per second of CPU time."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            print(f"\r{at_once} at a time, round {number + 1} of {rounds}: {name} …      ", end="", file=sys.stderr)
            made, cpu_s = run(requests, at_once)
            rates[name].append(made / cpu_s)
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
@click.option("--threads", default=1, show_default=True, help="Of each.")
@click.option("--vllm", "vllm_python", default="", help="A Python that has vLLM; left out without.")
@click.option("--seed", default=1, show_default=True, help="Of lengths and prompts.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(
    *,
    model: str,
    depths: tuple[int, ...],
    count: int,
    rounds: int,
    threads: int,
    vllm_python: str,
    seed: int,
    save: bool,
) -> None:
    """Measure tokens per second of CPU time: another process on this machine costs wall time, and not these figures.

    Static batches of at most 16 are formed in the order of arrival; what they compute beyond what was asked for counts
    for nothing. Trust the ratios of one run.
    """
    from zmqrt.worker.model_sources import resolve

    files = resolve(model, progress=lambda _phase, _percent: None)
    runs, vocabulary = load(files.path, max(depths), threads)
    if vllm_python:
        runs["vllm"] = Vllm(vllm_python, files.path, max(depths), threads).run
    table = Table(
        title=f"{model}, float32, threads: {threads}; tokens/s of CPU (median of {rounds}, lowest to highest)"
    )
    for name in ("at once", *runs, *(f"/ {name}" for name in runs if name != "generate")):
        table.add_column(name, justify="right")
    all_rates: dict[str, dict[str, list[float]]] = {}
    for at_once in depths:
        requests = make_requests(count if at_once > 1 else max(4, count // 6), vocabulary, seed)
        rates = all_rates[str(at_once)] = measure(runs, requests, at_once, rounds)
        cells = [f"{statistics.median(one):.1f} ({min(one):.1f} to {max(one):.1f})" for one in rates.values()]
        over = ratios(rates)
        print(
            f"{at_once} at a time: {dict(zip(rates, cells, strict=True))}; generate over the others: {over}",
            file=sys.stderr,
        )
        table.add_row(str(at_once), *cells, *(f"{ratio:.2f}" for ratio in over.values()))
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
