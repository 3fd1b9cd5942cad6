"""A broker that has no descriptor left for who comes: it says so, serves who is there, and does not turn in circles."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
import zmq

from support.stack import Stack, eventually
from zmqrt.protocol import descriptors, transport

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")]
FEW = 100
LOOK_S = 2.0
"""Of the processor's time; the broker has a word to say in each second of it."""


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """Run a broker that may have few descriptors, and a node."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    popen = subprocess.Popen

    def started(words: list[str], **options: object) -> object:
        if "zmqrt.broker" in words:
            words = ["/bin/sh", "-c", f'ulimit -n {FEW}; exec "$0" "$@"', *words]
        return popen(words, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("support.stack.Popen", started)
    with Stack() as made:
        made.broker()
        made.worker()
        made.wait_for_nodes(1)
        yield made
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == allowed


@pytest.mark.parametrize("port", ["clients", "workers"])
def test_a_broker_without_descriptors_says_so_and_serves_on(stack: Stack, port: str) -> None:
    """Hundreds want to connect again and again; less than half a core goes into sending them away."""
    broker = stack.processes[0]
    process = psutil.Process(broker.pid)
    context = transport.make_context()
    crowd: list[zmq.Socket[bytes]] = []
    with stack.client() as client, contextlib.ExitStack() as close:
        client.infer("before", max_tokens=3, temperature=0)
        close.callback(context.term)
        for _ in range(3 * FEW):
            dealer = context.socket(zmq.DEALER)
            close.callback(dealer.close, 0)
            dealer.reconnect_ivl, dealer.reconnect_ivl_max = 100, 1000
            dealer.connect(broker.endpoints[port])
            crowd.append(dealer)

        eventually(lambda: "out of file descriptors" in broker.output(), what="a word about it")
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        while time.monotonic() < began + LOOK_S:
            client.infer("meanwhile", max_tokens=3, temperature=0)
            time.sleep(0.05)
        used = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
        shown = client.status()

    print(f"{used:.2f} cores, {shown.counters['turned_away']} sent away")
    assert used < 0.5
    assert shown.counters["turned_away"] > 0
    assert broker.output().count("out of file descriptors") == 1
    with stack.client() as late:  # and when they are gone there is room again
        late.infer("after", max_tokens=3, temperature=0)


def test_the_limit_is_raised_as_far_as_is_allowed() -> None:
    """1,024 is where most systems begin, not where they end."""
    code = (
        "import resource; from zmqrt.protocol import descriptors as d; "
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); d.raise_limit(); "
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard, d.is_spare(3))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.split() == ["True", "False"]
    most = descriptors.limit()
    assert most is None or descriptors.is_spare(most - 1)
