"""The same loss with real weights: another node goes on at the exact token, and soon."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from support.stack import Stack, eventually
from zmqrt.client import Client
from zmqrt.protocol.timing import Timing

pytestmark = [pytest.mark.e2e, pytest.mark.realmodel, pytest.mark.timeout(300)]
TOKENS = 64
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture
def fleet() -> Iterator[Stack]:
    """Two nodes that serve SmolLM2 on the CPU."""
    with Stack() as stack:
        stack.broker()
        for number in range(2):
            words = ("--device", "cpu", "--slots", "4")
            stack.worker(*words, engine="generate", node_id=f"node-{number}", env=ONE_THREAD)
        stack.wait_for_nodes(2)
        yield stack


class Telling:
    """One stream, read on a thread of its own, with the longest time that nothing came."""

    def __init__(self, client: Client, seed: int, *, temperature: float) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.gap_s = 0.0
        self._handle = client.submit(
            "Tell me a story about the sea.",
            stream=True,
            max_tokens=TOKENS,
            seed=seed,
            temperature=temperature,
            ignore_eos=True,
            timeout_s=120,
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        last: float | None = None
        while (chunk := self._handle.next_chunk()) is not None:
            now = time.monotonic()
            self.gap_s = max(self.gap_s, now - (last or now))
            last = now
            assert chunk.index == len(self.ids)
            self.ids += chunk.token_ids
            self.text += chunk.text

    def end(self) -> tuple[list[int], str]:
        """Wait for its end; what came in pieces is the whole."""
        self._thread.join()
        result = self._handle.result()
        assert (self.ids, self.text) == (result.token_ids, result.text)
        return self.ids, self.text


def tell(client: Client) -> list[Telling]:
    """Begin two greedy streams and two sampled ones: one of each sort for each node."""
    return [Telling(client, seed, temperature=0.0 if seed < 2 else 0.9) for seed in range(4)]


def test_a_real_stream_outlives_its_node(fleet: Stack) -> None:
    """Greedy and sampled: the client's text is that of the undisturbed run, and no gap is as long as an eviction."""
    with fleet.client() as client:
        undisturbed = [one.end() for one in tell(client)]
        told = tell(client)
        eventually(lambda: all(len(one.ids) >= 6 for one in told), what="the beginnings")
        busy = [node.node_id for node in client.status().nodes if node.in_flight]
        assert set(busy) == {"node-0", "node-1"}
        assert all(len(one.ids) < TOKENS for one in told), "they ended before the test began"
        fleet.node("node-0").kill()

        assert [one.end() for one in told] == undisturbed
        counters = client.status().counters
        assert counters["resumes"] >= 1

    longest_s = max(one.gap_s for one in told)
    print(f"longest gap {longest_s:.2f} s; {counters['resumes']} streams resumed; load {os.getloadavg()[0]:.1f}")
    assert longest_s < Timing().eviction_s
