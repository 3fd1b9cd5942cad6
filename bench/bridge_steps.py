"""Where a bridge spends its CPU time, step by step: requests, chats and streams through a fleet with the mock engine.

The bridge runs as it always does, and looks every few milliseconds of its CPU time which of our modules it is in. What
a library does for a module counts as that module's; what runs below none of them is the event loop with its system
calls. The time of ZeroMQ's thread is counted apart. Shares are of samples, microseconds of the process's CPU clock.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dis
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final

import bench_path
import click
import httpx
import msgspec
import psutil
from processes import cpu_s, start, tell, wait_until_up
from rich.console import Console
from rich.table import Table
from rounds import CallOrder, CallOutcome

_QUIET: Final = ("--log-format", "json", "--log-level", "warning")
_SAMPLE_S: Final = 0.004
_TOKENS: Final = 128
_RESUME: Final = dis.opmap["RESUME"]
_ELSEWHERE: Final = "event loop and system calls"
_ZEROMQ: Final = "ZeroMQ's thread"
STEPS: Final = {
    "connection: bytes in and out, heads": "bridge_http: connection connection_limits request_parser heads",
    "who asks, which path": "bridge_http: access api_keys cors paths middleware work",
    "body to a task": "bridge_http: request_body json_body v1 openai.requests openai.tools openai.grammars",
    "endpoint, and giving up": "bridge_http: infer in_flight openai.routes openai.passing choices generations",
    "task to a call": "client: calls arguments protocol: tasks prefix names",
    "core of the client": "client: core request_table requests replies timers connection failover queries",
    "pass and envelopes": "client: event_loop_io io_base broker_sockets zmq_socket protocol: codec transport messages",
    "waiting for the answer, and reading it": "client: aio base loop_client mailbox wakeup response tracing",
    "answer to bytes": "bridge_http: exchange errors openai.responses sse deltas protocol: markup",
    "metrics": "bridge_http: metrics",
}


def _step_of_module() -> dict[str, str]:
    steps: dict[str, str] = {}
    for step, words in STEPS.items():
        folder = ""
        for word in words.split():
            if word.endswith(":"):
                folder = word[:-1]
            else:
                steps[f"zmqrt.{folder}.{word}"] = step
    return steps


def serve(file: str) -> None:
    """Be a bridge that keeps count of where it is, from SIGUSR1 on, and writes that to a file at its end."""
    samples: collections.Counter[str] = collections.Counter()
    steps, used_s = _step_of_module(), time.thread_time()

    def sample(_number: int, frame: FrameType | None) -> None:
        nonlocal used_s
        before, used_s = used_s, time.thread_time()
        if used_s - before < _SAMPLE_S / 2:
            return  # another thread used that time
        if frame is not None and frame.f_code.co_code[frame.f_lasti] == _RESUME:
            frame = frame.f_back  # it has only been entered: the time was that of whoever called it
        while frame is not None and not frame.f_globals.get("__name__", "").startswith("zmqrt."):
            frame = frame.f_back
        module = frame.f_globals["__name__"] if frame is not None else ""
        samples[steps.get(module, _ELSEWHERE)] += 1

    def forget(_number: int, _frame: FrameType | None) -> None:
        samples.clear()

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, forget)
    signal.setitimer(signal.ITIMER_PROF, _SAMPLE_S, _SAMPLE_S)
    atexit.register(lambda: Path(file).write_text(json.dumps(samples)))

    from zmqrt.bridge_http.__main__ import main as bridge

    bridge()


def measure(kind: str, depth: int, seconds: float, step_ms: int) -> tuple[dict[str, float], float]:
    """Return the share of each step, and CPU us of the bridge for each request or token."""
    with contextlib.ExitStack() as stack:
        doors = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
        _, said = start(stack, "-m", "zmqrt.broker", *_QUIET, *doors)
        where = json.loads(said.readline())["endpoints"]
        mock = ("--engine", "mock", "--devices", "0", "--slots", "512", "--node-max-capacity", "1000")
        options = ("--engine-opt", f"step_ms={step_ms},eos=never")
        _, said = start(stack, "-m", "zmqrt.worker", *_QUIET, "--broker", where["workers"], *mock, *options)
        said.readline()
        file = Path(stack.enter_context(tempfile.TemporaryDirectory()), "samples.json")
        own = contextlib.ExitStack()
        words = (*_QUIET, "--broker", where["clients"], "--port", "0")
        bridge, said = start(own, str(Path(__file__).resolve()), "serve", str(file), *words)
        url = json.loads(said.readline())["endpoints"]["http"]
        wait_until_up(f"{url}/readyz")
        used_us, zeromq = _load(stack, bridge.pid, url, kind, depth, seconds)
        own.close()
        samples: dict[str, int] = json.loads(file.read_text())
    total = sum(samples.values())
    return {step: (1 - zeromq) * count / total for step, count in samples.items()} | {_ZEROMQ: zeromq}, used_us


def _load(
    stack: contextlib.ExitStack, pid: int, url: str, kind: str, depth: int, seconds: float
) -> tuple[float, float]:
    """Ask for a while; return CPU us for each request or token, and the share of ZeroMQ's thread."""
    asker, said = start(stack, str(Path(__file__).parent / "http_load.py"))
    said.readline()
    is_stream, is_chat = kind == "stream", kind == "chat"
    order = CallOrder(
        depth=depth,
        seconds=1.0,
        url=f"{url}/v1/chat/completions" if is_chat else f"{url}/infer",
        max_tokens=_TOKENS if is_stream else 1,
        is_stream=is_stream,
        model=httpx.get(f"{url}/v1/models").json()["data"][0]["id"] if is_chat else "",
        end_mark=bench_path.INFER_END if is_stream else "",
    )
    tell(asker, msgspec.json.encode(order).decode())
    said.readline()
    process = psutil.Process(pid)
    process.send_signal(signal.SIGUSR1)
    used_s, others_s = cpu_s(pid), _others_s(process)
    tell(asker, msgspec.json.encode(msgspec.structs.replace(order, seconds=seconds)).decode())
    outcome = msgspec.json.decode(said.readline(), type=CallOutcome)
    used_s, others_s = cpu_s(pid) - used_s, _others_s(process) - others_s
    return 1e6 * used_s / (outcome.answered * (_TOKENS if is_stream else 1)), others_s / used_s


def _others_s(process: psutil.Process) -> float:
    own = (one for one in process.threads() if one.id != process.pid)
    return float(sum(one.user_time + one.system_time for one in own))


@click.command(help=__doc__)
@click.option("--kind", type=click.Choice(["infer", "chat", "stream"]), default="infer")
@click.option("--depth", default=64, help="Requests in flight.")
@click.option("--seconds", default=8.0)
@click.option("--step-ms", default=0, help="What the mock takes for a step.")
def main(*, kind: str, depth: int, seconds: float, step_ms: int) -> None:
    """Measure, and print."""
    shares, used_us = measure(kind, depth, seconds, step_ms)
    unit = "token" if kind == "stream" else "request"
    table = Table("step", f"CPU us a {unit}", "%", title=f"{kind}, {depth} in flight: {used_us:,.0f} us of the bridge")
    for step in (*STEPS, _ELSEWHERE, _ZEROMQ):
        share = shares.get(step, 0.0)
        table.add_row(step, f"{share * used_us:,.1f}", f"{share:.0%}")
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        target = sys.argv.pop(2)
        del sys.argv[1]
        serve(target)
    else:
        main()
