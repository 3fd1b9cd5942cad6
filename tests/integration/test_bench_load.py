"""The load that benches put on servers over HTTP: what it counts as answered, and what not."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Generator

import click
import http_load
import pytest
from processes import HERE, child, free_port, wait_until_up
from rounds import CallOrder

pytestmark = pytest.mark.integration
TOKENS = 5


@pytest.fixture(scope="module")
def engine() -> Generator[str]:
    """The address of a plain engine without a pause between tokens."""
    port = str(free_port())
    with child(sys.executable, str(HERE / "plain_engine.py"), port, "0"):
        wait_until_up(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"


def order(url: str, *, model: str = "", is_stream: bool = False, end_mark: str = "") -> CallOrder:
    """Ask for a moment."""
    return CallOrder(
        depth=3,
        seconds=0.1,
        url=url,
        max_tokens=TOKENS,
        is_stream=is_stream,
        model=model,
        end_mark=end_mark,
    )


def test_whole_answers_are_counted(engine: str) -> None:
    """Of both interfaces."""
    for path, model in (("/infer", ""), ("/v1/chat/completions", "counter")):
        outcome = http_load.run(order(engine + path, model=model))

        assert outcome.answered >= 3
        assert (outcome.refused, outcome.stalled, outcome.events) == (0, 0, 0)


def test_streams_are_counted_with_their_events(engine: str) -> None:
    """Each token is an event; an end has one more, and a chat one for the role, one for the reason of the end."""
    infer = http_load.run(order(f"{engine}/infer", is_stream=True, end_mark="event: done"))
    chat = http_load.run(
        order(f"{engine}/v1/chat/completions", model="counter", is_stream=True, end_mark="data: [DONE]")
    )

    assert infer.events == infer.answered * (TOKENS + 1)
    assert chat.events == chat.answered * (TOKENS + 3)
    assert infer.refused == chat.refused == infer.stalled == chat.stalled == 0


def test_a_stream_without_its_end_is_not_an_answer(engine: str) -> None:
    """It would make a server fast that loses half of what it says."""
    outcome = http_load.run(order(f"{engine}/infer", is_stream=True, end_mark="event: something else"))

    assert outcome.answered == 0
    assert outcome.refused >= 3


def test_another_status_is_not_an_answer() -> None:
    """And a body of no length ends."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"}"):
                writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async def ask() -> tuple[int, int]:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            outcome = await asyncio.to_thread(http_load.run, order(f"http://127.0.0.1:{port}/infer"))
        return outcome.answered, outcome.refused

    answered, refused = asyncio.run(ask())

    assert answered == 0
    assert refused >= 3


def test_a_server_that_does_not_come_up_is_told_of() -> None:
    """Instead of a load on nothing."""
    with pytest.raises(click.ClickException, match="was not up"):
        wait_until_up(f"http://127.0.0.1:{free_port()}/health", most_s=0.1)
