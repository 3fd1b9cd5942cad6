"""What callers see when one of two engines is killed: zmqrt beside gateways that pass a stream through.

Streams run over two engines; in the middle one engine gets `kill -9`. Each is compared with the answer that the same
prompt had before. Gateways stand in front of `plain_engine.py`; zmqrt has two nodes of the mock engine behind a
broker and a bridge. A gateway takes part if its program is found, on PATH or by `--program smg=/path/to/smg`; for
litserve and ray that is the Python that has them. docs/compare.md has the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import click
import httpx
import msgspec
from plain_engine import MODEL
from processes import HERE, child, free_port, wait_until_up
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.table import Table

TOKENS: Final = 400
"""At 20 ms each a stream lasts eight seconds at least."""
KILLED_AT: Final = 60
"""So many characters every stream has brought when the engine is killed; all are under way then, and none is done."""
MOST_S: Final = 60.0
"""A stream that has not ended by then hangs."""
ENDS: Final = ("whole", "cut short, ended as if whole", "cut short, error told", "broken off", "hangs")


class Service(msgspec.Struct, frozen=True):
    """A service that is up: where it is asked, for which model, and how one of its engines is killed."""

    url: str
    model: str
    kill_engine: Callable[[], None]


class Report(Circumstances, frozen=True, kw_only=True):
    """What is written to a file."""

    streams: int
    ends: dict[str, Counter[str]]
    longest_gap_s: dict[str, float]


@contextlib.contextmanager
def two_engines() -> Generator[tuple[list[str], Callable[[], None]]]:
    """Run two plain engines; yield their addresses, and what kills the first."""
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(child(sys.executable, str(HERE / "plain_engine.py"), str(p))) for p in ports]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            wait_until_up(f"{url}/health")
        yield urls, engines[0].kill


@contextlib.contextmanager
def zmqrt(_: str) -> Generator[Service]:
    """Run a broker, two mock nodes and a bridge."""
    clients, workers, port = (free_port() for _ in range(3))
    url = f"http://127.0.0.1:{port}"
    quiet = ("--log-level", "warning")
    pace = ("--engine", "mock", "--devices", "0", "--slots", "64", "--engine-opt", "step_ms=20,eos=never")
    node = (sys.executable, "-m", "zmqrt.worker", *quiet, "--broker", f"tcp://127.0.0.1:{workers}", *pace)
    doors = ("--clients", f"tcp://127.0.0.1:{clients}", "--workers", f"tcp://127.0.0.1:{workers}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(child(sys.executable, "-m", "zmqrt.broker", *quiet, *doors))
        nodes = [stack.enter_context(child(*node)) for _ in range(2)]
        bridge = ("-m", "zmqrt.bridge_http", *quiet, "--broker", f"tcp://127.0.0.1:{clients}", "--port", str(port))
        stack.enter_context(child(sys.executable, *bridge))
        wait_until_up(f"{url}/health")
        give_up_at = time.monotonic() + 30
        while len(httpx.get(f"{url}/status").json()["nodes"]) < 2 and time.monotonic() < give_up_at:
            time.sleep(0.2)
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        yield Service(url, model, nodes[0].kill)


@contextlib.contextmanager
def nginx(program: str) -> Generator[Service]:
    """Run nginx over two engines, as one writes it for Ollama: unbuffered, next upstream on errors."""
    with two_engines() as (urls, kill), tempfile.TemporaryDirectory() as folder:
        port = free_port()
        servers = " ".join(f"server {url.removeprefix('http://')};" for url in urls)
        paths = " ".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        Path(folder, "nginx.conf").write_text(
            f"""daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1;
            events {{ worker_connections 512; }}
            http {{ access_log off; {paths} upstream engines {{ {servers} }}
              server {{ listen 127.0.0.1:{port};
                location / {{ proxy_pass http://engines; proxy_http_version 1.1; proxy_buffering off; }} }} }}"""
        )
        with child(program, "-p", folder, "-e", f"{folder}/errors", "-c", f"{folder}/nginx.conf"):
            wait_until_up(f"http://127.0.0.1:{port}/health")
            yield Service(f"http://127.0.0.1:{port}", MODEL, kill)


@contextlib.contextmanager
def router(*command: str) -> Generator[Service]:
    """Run a router over two engines: vllm-router and smg (the gateway of SGLang) take the same flags."""
    with two_engines() as (urls, kill):
        port, metrics = free_port(), free_port()
        words = ("--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin", "--worker-urls", *urls)
        with child(*command, *words, "--prometheus-port", str(metrics)):
            wait_until_up(f"http://127.0.0.1:{port}/health")
            yield Service(f"http://127.0.0.1:{port}", MODEL, kill)


@contextlib.contextmanager
def litellm(program: str) -> Generator[Service]:
    """Run LiteLLM's proxy over two engines, with two retries."""
    with two_engines() as (urls, kill), tempfile.TemporaryDirectory() as folder:
        port = free_port()
        models = [
            {
                "model_name": MODEL,
                "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
            }
            for url in urls
        ]
        config = Path(folder, "config.yaml")  # JSON is YAML
        config.write_text(json.dumps({"model_list": models, "router_settings": {"num_retries": 2}}))
        words = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port))
        local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
        with child(program, *words, **local):
            wait_until_up(f"http://127.0.0.1:{port}/health/liveliness")
            yield Service(f"http://127.0.0.1:{port}", MODEL, kill)


@contextlib.contextmanager
def replicas(program: str, script: str) -> Generator[Service]:
    """Run an engine as two replicas of a framework; `program` is the Python that has it."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with child(program, str(HERE / script), str(port)):
        wait_until_up(f"{url}/health")
        yield Service(url, MODEL, lambda: _kill_who_answers(url))


def _kill_who_answers(url: str) -> None:
    """Kill the process that a peer names when it is asked for its `pid`."""
    asked = {"model": MODEL, "stream": True, "max_tokens": 1, "messages": [{"role": "user", "content": "pid"}]}
    said = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=30).text
    found = re.search(r"pid (\d+)", said)
    if found is None:
        raise click.ClickException(f"no pid in {said[:200]!r}")
    os.kill(int(found[1]), signal.SIGKILL)


SERVICES: Final[dict[str, Callable[[str], contextlib.AbstractContextManager[Service]]]] = {
    "zmqrt": zmqrt,
    "nginx": nginx,
    "vllm-router": router,
    "smg": lambda program: router(program, "launch"),
    "litellm": litellm,
    "litserve": lambda program: replicas(program, "litserve_engine.py"),
    "ray": lambda program: replicas(program, "ray_engine.py"),
}


class Answer(msgspec.Struct):
    """What a caller has seen of one stream."""

    text: str = ""
    is_done: bool = False
    """`[DONE]` came."""
    trouble: str = ""
    longest_gap_s: float = 0.0

    def end(self, reference: str) -> str:
        """Say how it ended, in one of the words of `ENDS`."""
        if self.trouble in ENDS:
            return self.trouble
        if self.trouble:
            return "cut short, error told"
        if not self.is_done:
            return "broken off"
        return "whole" if self.text == reference else "cut short, ended as if whole"


async def read(http: httpx.AsyncClient, service: Service, prompt: str, answer: Answer) -> None:
    """Read one stream to its end, whatever that is, into `answer`."""
    last_at = time.monotonic()
    body = {
        "model": service.model,
        "stream": True,
        "max_tokens": TOKENS,
        "temperature": 0,
        "messages": [{"role": "user", "content": prompt}],
    }
    try:
        async with (
            asyncio.timeout(MOST_S),
            http.stream("POST", f"{service.url}/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                answer.trouble = f"status {response.status_code}"
                return
            async for line in response.aiter_lines():
                answer.longest_gap_s = max(answer.longest_gap_s, time.monotonic() - last_at)
                last_at = time.monotonic()
                _take(answer, line)
    except TimeoutError:
        answer.trouble = "hangs"
    except httpx.HTTPError as error:
        answer.trouble = "broken off" if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) else repr(error)


def _take(answer: Answer, line: str) -> None:
    if line == "data: [DONE]":
        answer.is_done = True
    elif line.startswith("data: {"):
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if "error" in event:
            answer.trouble = "error"
        for choice in event.get("choices", ()):
            answer.text += choice.get("delta", {}).get("content") or ""


async def judge(service: Service, streams: int) -> tuple[Counter[str], float]:
    """Ask each prompt undisturbed, then again with an engine killed half way; count how the streams ended."""
    prompts = [f"stream {index}" for index in range(streams)]
    whole, cut = [Answer() for _ in prompts], [Answer() for _ in prompts]
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None)) as http:  # noqa: S113 - bounded by MOST_S
        await asyncio.gather(*(read(http, service, *pair) for pair in zip(prompts, whole, strict=True)))
        if odd := [answer for answer in whole if not answer.is_done or not answer.text]:
            raise click.ClickException(f"a stream that nobody disturbed did not end well: {odd[0]}")
        running = asyncio.gather(*(read(http, service, *pair) for pair in zip(prompts, cut, strict=True)))
        while not running.done() and min(len(answer.text) for answer in cut) < KILLED_AT:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)
        await asyncio.to_thread(service.kill_engine)
        await running
    ends = Counter(answer.end(before.text) for answer, before in zip(cut, whole, strict=True))
    return ends, max(answer.longest_gap_s for answer in cut)


@click.command(help=__doc__)
@click.option("--streams", default=20, show_default=True)
@click.option("--program", "programs", multiple=True, metavar="NAME=PATH", help=f"Names: {', '.join(SERVICES)}.")
@click.option("--only", multiple=True, type=click.Choice(list(SERVICES)), help="Compare these alone.")
@click.option("--keep", is_flag=True, help="Write the report where git keeps it.")
def main(streams: int, programs: tuple[str, ...], only: tuple[str, ...], keep: bool) -> None:  # noqa: FBT001 - click
    """Run the comparison."""
    found = dict(program.split("=", 1) for program in programs)
    console = Console()
    ends: dict[str, Counter[str]] = {}
    gaps: dict[str, float] = {}
    for name, service in SERVICES.items():
        program = found.get(name) or shutil.which(name) or ("." if name == "zmqrt" else "")
        if (only and name not in only) or not program:
            console.print(f"{name}: left out{'' if program else ', its program was not found'}")
            continue
        with console.status(f"{name} …"), service(program) as running:
            counted, gap = asyncio.run(judge(running, streams))
        ends[name], gaps[name] = counted, round(gap, 2)
        console.print(f"{name}: {dict(counted)}, longest pause {gap:.1f} s")

    table = Table("", *ENDS, "longest pause s", title=f"{streams} streams over two engines, one of them killed")
    for name, counted in ends.items():
        table.add_row(name, *(str(counted[end]) for end in ENDS), f"{gaps[name]:.1f}")
    console.print(table)
    report = Report(**circumstances(), streams=streams, ends=ends, longest_gap_s=gaps)
    console.print(write(report, "engine-loss", is_kept=keep))


if __name__ == "__main__":
    main()
