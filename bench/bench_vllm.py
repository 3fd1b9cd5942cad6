"""vLLM by itself (`vllm serve`) beside the same vLLM as an engine of a node: tokens a second, and the first of them.

Both stand side by side, with the same arguments, and are asked in turn by the same load over HTTP: so many streams at a
time of `/v1/completions`, each of so many tokens, greedy. Of zmqrt that is the whole way: bridge, broker, node, engine.

    python bench/bench_vllm.py --vllm /path/to/python    (of an environment with zmqrt[vllm])
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Generator, Sequence
from typing import Final
from urllib.parse import urlsplit

import click
from processes import child, free_port, wait_until_up
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.table import Table

from zmqrt.protocol.errors import ConfigurationError
from zmqrt.worker.model_sources import resolve

_EVENT: Final = b"data:"
_END: Final = b"\r\n0\r\n\r\n"
_START_S: Final = 600.0
_CPU: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


class VllmReport(Circumstances, frozen=True, kw_only=True):
    """What is written to a file: by service and depth, a figure for each round."""

    tokens: int
    tokens_per_s: dict[str, dict[str, list[float]]]
    first_token_ms: dict[str, dict[str, list[float]]]


@contextlib.contextmanager
def plain(python: str, model: str, arguments: Sequence[str], environment: dict[str, str]) -> Generator[str]:
    """Run `vllm serve`; yield its address."""
    port = free_port()
    serve = (python, "-m", "vllm.entrypoints.cli.main", "serve", model, "--port", str(port), "--host", "127.0.0.1")
    with child(*serve, "--served-model-name", "model", *arguments, **environment):
        url = f"http://127.0.0.1:{port}"
        wait_until_up(f"{url}/health", _START_S)
        yield url


@contextlib.contextmanager
def ours(python: str, model: str, arguments: Sequence[str], environment: dict[str, str]) -> Generator[str]:
    """Run broker, bridge and a node with vLLM; yield the bridge's address."""
    clients, workers, port = (free_port() for _ in range(3))
    quiet = ("--log-level", "warning")
    doors = ("--clients", f"tcp://127.0.0.1:{clients}", "--workers", f"tcp://127.0.0.1:{workers}")
    options = [word for argument in arguments for word in ("--engine-opt", argument.removeprefix("--"))]
    node = ("--engine", "vllm", "--model", model, "--served-model-name", "model", *options)
    with (
        child(sys.executable, "-m", "zmqrt.broker", *quiet, *doors),
        child(
            sys.executable,
            "-m",
            "zmqrt.bridge_http",
            *quiet,
            "--broker",
            f"tcp://127.0.0.1:{clients}",
            "--port",
            str(port),
        ),
        child(python, "-m", "zmqrt.worker", *quiet, "--broker", f"tcp://127.0.0.1:{workers}", *node, **environment),
    ):
        url = f"http://127.0.0.1:{port}"
        wait_until_up(f"{url}/readyz", _START_S)
        yield url


# --- the load --------------------------------------------------------------------------------------------------------


async def _ask(url: str, prompt: str, tokens: int) -> float:
    """Read one stream to its end; return after how many seconds its first token came."""
    place = urlsplit(url)
    body = {
        "model": "model",
        "prompt": prompt,
        "max_tokens": tokens,
        "stream": True,
        "temperature": 0,
        "ignore_eos": True,
    }
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    began = time.perf_counter()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    first_s, seen = 0.0, b""
    while not seen.endswith(_END):
        data = await reader.read(1 << 16)
        if not data:
            raise click.ClickException(f"{url} broke a stream off after {seen[-200:]!r}")
        seen += data
        if not first_s and _EVENT in seen:
            first_s = time.perf_counter() - began
    writer.close()
    if b" 200 " not in seen[:16] or b"[DONE]" not in seen:
        raise click.ClickException(f"{url} answered {seen[:400]!r}")
    return first_s


async def load(url: str, depth: int, each: int, tokens: int, salt: int) -> tuple[float, float]:
    """Keep so many streams running until each caller has had `each` of them; tokens a second and the median first."""
    firsts: list[float] = []

    async def call(number: int) -> None:
        for turn in range(each):
            prompt = f"Caller {number} asks for the {turn}th time, round {salt}: what is the sea like in winter?"
            firsts.append(await _ask(url, prompt, tokens))

    began = time.perf_counter()
    await asyncio.gather(*map(call, range(depth)))
    return depth * each * tokens / (time.perf_counter() - began), 1000 * statistics.median(firsts)


@click.command()
@click.option("--vllm", "python", default=sys.executable, help="A Python with zmqrt[vllm].")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Of each stream.")
@click.option("--each", default=2, show_default=True, help="Streams that each caller reads in a round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--depth", "depths", type=int, multiple=True, default=(8, 32), show_default=True)
@click.option("--argument", "arguments", multiple=True, default=("--enforce-eager=1", "--dtype=float32"))
@click.option("--save", is_flag=True, help="Keep the figures in bench/results.")
def main(
    *,
    python: str,
    model: str,
    tokens: int,
    each: int,
    rounds: int,
    depths: tuple[int, ...],
    arguments: tuple[str, ...],
    save: bool,
) -> None:
    """Measure both in turn, and print medians and pairs."""
    try:
        path = str(resolve(model, progress=lambda _phase, _percent: None).path)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    given = [*arguments, "--max-model-len=512", f"--max-num-seqs={max(depths)}"]
    switches = [argument.removesuffix("=1") for argument in given]
    rates: dict[str, dict[str, list[float]]] = {"vllm": {}, "zmqrt": {}}
    firsts: dict[str, dict[str, list[float]]] = {"vllm": {}, "zmqrt": {}}
    with plain(python, path, switches, _CPU) as theirs, ours(python, path, given, _CPU) as our:
        for number in range(rounds + 1):
            for depth in depths:
                for name, url in [("vllm", theirs), ("zmqrt", our)][:: 1 if number % 2 else -1]:
                    rate, first = asyncio.run(load(url, depth, each, tokens, number))
                    if number:  # the first one warms both
                        rates[name].setdefault(str(depth), []).append(rate)
                        firsts[name].setdefault(str(depth), []).append(first)
    _show(rates, firsts)
    report = VllmReport(**circumstances(), tokens=tokens, tokens_per_s=rates, first_token_ms=firsts)
    Console().print(write(report, "vllm", is_kept=save))


def _show(rates: dict[str, dict[str, list[float]]], firsts: dict[str, dict[str, list[float]]]) -> None:
    table = Table("streams", "tokens/s vllm serve", "zmqrt", "pair by pair", "first token ms", "zmqrt", "pair by pair")
    for depth in rates["vllm"]:
        cells = [depth]
        for figures in (rates, firsts):
            pairs = [b / a for a, b in zip(figures["vllm"][depth], figures["zmqrt"][depth], strict=True)]
            cells += [f"{statistics.median(figures[name][depth]):.1f}" for name in ("vllm", "zmqrt")]
            cells.append(f"{statistics.median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})")
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
