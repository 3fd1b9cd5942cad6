"""Whoever does not read what it asked for: it alone loses its stream, and costs a bounded piece of memory."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Generator, Iterator

import pytest

from support.memory import Memory
from support.process_engines import ENV
from support.raw_client import RawClient
from support.stack import Stack, eventually, running
from zmqrt.client import CancelledError, Client
from zmqrt.protocol.errors import ErrorKind
from zmqrt.protocol.limits import STREAM_BUFFER_BYTES, WINDOW_BYTES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PIECE = 32 << 10
OFFERED = 100 << 20
ALL = f"{OFFERED // PIECE} {PIECE}"
SLACK = 16 << 20


@pytest.fixture(scope="module")
def flooded() -> Iterator[Stack]:
    """A fleet whose model pours out as much as the prompt says."""
    with Stack() as stack:
        stack.broker()
        stack.worker(
            *("--served-model-name", "flood", "--device", "cpu"),
            engine="support.process_engines:flood",
            node_id="flood",
            env=ENV,
        )
        stack.wait_for_nodes(1)
        yield stack


@contextlib.contextmanager
def neighbours(stack: Stack) -> Generator[None]:
    """Small streams of another client, one after the other, that all come whole meanwhile."""
    is_over = threading.Event()
    wrong: list[str] = []
    count = 0

    def ask() -> None:
        nonlocal count
        with stack.client() as client:
            while not is_over.is_set() or count < 10:
                text = "".join(chunk.text for chunk in client.stream("20 100", model="flood"))
                if text != "x" * 2000:
                    wrong.append(text)
                    return
                count += 1

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        is_over.set()
        asking.join()
    assert wrong == []
    assert count >= 10


def slow_readers(client: Client) -> int:
    """Ask how many were given up."""
    return client.status().counters["slow_readers"]


def test_a_peer_that_does_not_read_is_cancelled_alone(flooded: Stack) -> None:
    """A hundred megabytes are offered: it gets its window, then 499 slow_reader; the broker hardly grows."""
    broker = flooded.processes[0].pid
    with flooded.client() as client, neighbours(flooded):
        given_up = slow_readers(client)
        with Memory(broker) as memory, RawClient(flooded.clients) as stuck:
            rid = stuck.stream(ALL, "flood")
            eventually(lambda: slow_readers(client) > given_up, what="the verdict")
            eventually(lambda: flooded.status().running <= 1, what="an engine that has stopped")
            error, size = stuck.read_to_error()

    assert (error.rid, error.code, error.reason) == (rid, 499, "slow_reader")
    assert size < WINDOW_BYTES + 2 * PIECE
    assert memory.growth < WINDOW_BYTES + SLACK, f"grew by {memory.growth >> 20} MiB"
    print(f"broker grew by {memory.growth / 2**20:.1f} MiB; {size / 2**20:.1f} MiB were sent")


def test_a_reader_that_is_stuck_in_the_library_loses_its_stream_alone(flooded: Stack) -> None:
    """The library's buffer of that stream is full, and no other one is touched; what was received can still be read."""
    with flooded.client() as client, neighbours(flooded), Memory(flooded.processes[0].pid) as memory:
        before = client.status().counters["cancelled"]
        handle = client.submit(ALL, stream=True, model="flood")
        assert handle.next_chunk() is not None
        eventually(lambda: client.status().counters["cancelled"] > before, what="the end of the stream")
        beside = "".join(chunk.text for chunk in client.stream("100 1000", model="flood"))
        sizes: list[int] = []
        with pytest.raises(CancelledError) as caught:
            sizes.extend(len(chunk.text) for chunk in handle)

    assert caught.value.kind is ErrorKind.SLOW_READER
    assert sum(sizes) <= 2 * STREAM_BUFFER_BYTES
    assert beside == "x" * 100_000
    assert memory.growth < WINDOW_BYTES + SLACK


def test_a_stalled_event_stream_holds_up_no_other_one(flooded: Stack) -> None:
    """One caller of a bridge does not read; eight others of the same bridge get every byte."""
    bridge = flooded.bridge()
    host, port = bridge.endpoints["http"].removeprefix("http://").split(":")
    with Memory(bridge.pid) as memory, socket.create_connection((host, int(port))) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with flooded.client() as client:
            before = client.status().counters["requests"]
            stalled.sendall(request(ALL))
            eventually(lambda: client.status().counters["requests"] > before, what="the stalled stream")
        texts: list[int] = []
        others = [threading.Thread(target=lambda: texts.append(text_of(host, int(port)))) for _ in range(8)]
        for one in others:
            one.start()
        for one in others:
            one.join()
        with flooded.client() as client:
            eventually(lambda: client.status().running == 0, what="the end of the stalled stream")

    assert texts == [200_000] * 8
    # A window is what the broker sends ahead before the bridge can say that this reader takes nothing.
    assert memory.growth < WINDOW_BYTES + SLACK, f"the bridge grew by {memory.growth >> 20} MiB"


def request(prompt: str) -> bytes:
    """Build a POST that asks for events."""
    body = json.dumps({"prompt": prompt}).encode()
    head = f"POST /infer HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


def text_of(host: str, port: int) -> int:
    """Read a stream of 200,000 characters to its end; return how many came."""
    with socket.create_connection((host, port)) as caller:
        caller.sendall(request("100 2000"))
        with caller.makefile("rb") as lines:
            events = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]
    assert events[-1]["text"] == "x" * 200_000
    return sum(len(event["text"]) for event in events[:-1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stream_of_a_minute_is_kept_by_a_client_that_says_nothing_else() -> None:
    """With the timers as they are: a token every 20 s, longer than any silence that a broker forgives."""
    with running(worker=("--engine-opt", "step_ms=22000", "--devices", "mock:0")) as stack, stack.client() as client:
        began_at = time.monotonic()
        handle = client.submit("slow", stream=True, max_tokens=3, ignore_eos=True, model="mock", timeout_s=60)

        assert sum(len(chunk.token_ids) for chunk in handle) == 3
        assert time.monotonic() - began_at > 60
        assert client.status().counters["cancelled"] == 0
