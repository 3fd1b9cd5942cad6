"""A fleet that is asked for more than it can do: who waits hears where it stands, who would wait in vain hears so."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from support.stack import Stack, running
from zmqrt.client import BusyError, Client, QueuePlace, Stream

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
TOKENS = 10
ASKED = 40
DONE = 15


@pytest.fixture(scope="module")
def stack() -> Generator[Stack, None, None]:
    """Give a fleet with one place."""
    words = ("--slots", "1", "--engine-opt", "step_ms=20,eos=never")
    with running(worker=words) as stack:
        yield stack


@pytest.fixture
def busy(stack: Stack) -> Generator[Client, None, None]:
    """Give a client of a fleet that knows how long answers take when there are many, and has some more to do."""
    with Client(stack.clients) as client:
        streams: list[Stream] = [client.stream("hi", max_tokens=TOKENS) for _ in range(ASKED)]
        try:
            for stream in streams[:DONE]:
                list(stream)
            yield client
        finally:
            for stream in streams:
                stream.close()


def test_what_would_wait_in_vain_is_told_so_at_once(busy: Client) -> None:
    """With when to come back, and the numbers; a moment later others go on as before."""
    with pytest.raises(BusyError) as refused:
        busy.infer("hi", max_tokens=TOKENS, total_s=0.8, retries=0)

    assert "come before this one" in str(refused.value)
    assert (refused.value.retry_after_s or 0) > 0.8


def test_who_waits_hears_that_the_queue_moves(busy: Client) -> None:
    """How many come before it, and how long that takes: less and less, and then its answer."""
    places: list[QueuePlace] = []

    assert busy.infer("hi", max_tokens=1, on_wait=places.append).usage.completion_tokens == 1
    assert len(places) >= 2
    assert places[-1].before < places[0].before < ASKED
    assert places[-1].wait_s < places[0].wait_s
