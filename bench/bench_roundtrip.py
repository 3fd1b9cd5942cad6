"""How many requests a second go through the broker, beside libzmq's own `zmq.proxy` in the same run.

    python bench/bench_roundtrip.py [--seconds 2] [--rounds 5] [--in-flight 512] [--output FILE.json]

One process is the broker (or the proxy), another is the load: a client and a worker at the level of the codec, in one
thread. Rounds alternate, so that a busy machine disturbs both alike; medians are compared. CPU is that of the broker
process as the kernel counts it: all its threads, and its main thread alone (the rest is libzmq's I/O).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

sys.path.insert(0, str(Path(__file__).parent))
from load import BrokerLoad, ProxyLoad, Tally

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROXY = """
import json, zmq
context = zmq.Context(2)
front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
for one in (front, back):
    one.sndhwm = one.rcvhwm = 0
    one.bind("tcp://127.0.0.1:*")
ends = {"clients": front.last_endpoint.decode(), "workers": back.last_endpoint.decode()}
print(json.dumps({"event": "ready", "endpoints": ends}), flush=True)
zmq.proxy(front, back)
"""


class Middle:
    """A process between client and worker, and what it has used of the processor."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.endpoints: dict[str, str] = ready["endpoints"]

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds of (all threads, the main thread)."""
        pid = self.process.pid
        return _cpu_s(Path(f"/proc/{pid}/stat")), _cpu_s(Path(f"/proc/{pid}/task/{pid}/stat"))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def _cpu_s(path: Path) -> float:
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def one_round(middle: Middle, load: BrokerLoad | ProxyLoad, in_flight: int, seconds: float) -> dict[str, float]:
    """Run one round and return its figures."""
    load.run(in_flight, 0.2)
    total, main = middle.cpu_s()
    begin = time.perf_counter()
    tally: Tally = load.run(in_flight, seconds)
    elapsed = time.perf_counter() - begin
    total_after, main_after = middle.cpu_s()
    done = max(1, tally.answered)
    return {
        "requests_per_s": tally.answered / elapsed,
        "p50_us": tally.percentile(0.5),
        "p99_us": tally.percentile(0.99),
        "cpu_us_per_request": (total_after - total) / done * 1e6,
        "main_thread_us_per_request": (main_after - main) / done * 1e6,
        "refused": float(tally.refused),
    }


def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure, and the spread of the rate."""
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    rates = [one["requests_per_s"] for one in rounds]
    return {**medians, "slowest_round": min(rates), "fastest_round": max(rates)}


def compare(in_flight: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Alternate rounds of both, each in a process that lives for all of them."""
    broker = Middle(
        "broker",
        [
            *(sys.executable, "-m", "zmqrt.broker", "--log-format", "json", "--log-level", "warning"),
            *("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0"),
            *("--max-outstanding", "100000", "--max-queued-requests", "100000", "--max-in-flight-requests", "100000"),
        ],
    )
    proxy = Middle("zmq.proxy", [sys.executable, "-c", _PROXY])
    loads = {
        "broker": (broker, BrokerLoad(**broker.endpoints)),
        "zmq.proxy": (proxy, ProxyLoad(**proxy.endpoints)),
    }
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
    try:
        for _ in range(rounds):
            for name, (middle, load) in loads.items():
                figures[name].append(one_round(middle, load, in_flight, seconds))
    finally:
        for middle, load in loads.values():
            load.close()
            middle.stop()
    medians = {name: median_of(rounds) for name, rounds in figures.items()}
    ratios = [b["requests_per_s"] / p["requests_per_s"] for b, p in zip(*figures.values(), strict=True)]
    return {"in_flight": in_flight, **medians, "ratio": statistics.median(ratios), "ratios": ratios, "rounds": figures}


def show(result: dict[str, Any]) -> None:
    """Print one comparison as a table."""
    print(f"\n{result['in_flight']} in flight")
    print(f"{'':12}{'requests/s':>12}{'p50 us':>10}{'p99 us':>10}{'CPU us/request':>16}{'main thread':>13}")
    for name in ("broker", "zmq.proxy"):
        one = result[name]
        print(
            f"{name:12}{one['requests_per_s']:12,.0f}{one['p50_us']:10,.0f}{one['p99_us']:10,.0f}"
            f"{one['cpu_us_per_request']:16.1f}{one['main_thread_us_per_request']:13.1f}"
        )
    spread = f"{min(result['ratios']):.2f} to {max(result['ratios']):.2f}"
    print(f"broker / zmq.proxy: {result['ratio']:.2f} (median of paired rounds, {spread})")


def main() -> None:
    """Compare at several depths, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--output", type=Path, default=None, help="write all figures as JSON")
    arguments = parser.parse_args()
    results = [compare(one, arguments.rounds, arguments.seconds) for one in arguments.in_flight]
    for result in results:
        show(result)
    if arguments.output:
        arguments.output.write_text(json.dumps({"setting": setting(), "results": results}, indent=1) + "\n")
        print(f"\nwritten to {arguments.output}")


def setting() -> dict[str, Any]:
    """Say what was measured, and where."""
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "msgspec": msgspec.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "body_bytes": 100,
    }


if __name__ == "__main__":
    main()
