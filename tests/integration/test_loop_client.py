"""The client without a thread, over real sockets: it misses nothing that ZeroMQ's edge-triggered descriptor hides."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from support.tiny_broker import TinyBroker, echo, partial, refuse, words_of
from zmqrt.client import CancelledError, ConnectError
from zmqrt.client.loop_client import LoopClient
from zmqrt.client.mailbox import TOGETHER_BYTES
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import RequestError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="its loops have no add_reader"),
]
Runner = Callable[[Coroutine[Any, Any, None]], None]


def in_uvloop(main: Coroutine[Any, Any, None]) -> None:
    """Run in uvloop."""
    import uvloop

    uvloop.run(main)


@pytest.fixture(params=[asyncio.run, in_uvloop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    """Run something in each of the loops."""
    runner: Runner = request.param
    return runner


def test_hundreds_at_once_all_get_their_answers(run: Runner) -> None:
    """More envelopes than one pass reads, while others are sent: whatever a send swallows is read all the same."""

    async def one(client: LoopClient, number: int) -> None:
        for turn in range(5):
            words = f"{number} of {turn}"
            assert (await client.infer(words, model="toy")).text == words
            pieces = [chunk.text async for chunk in client.stream(words, model="toy")]
            assert "".join(pieces) == words

    async def main() -> None:
        with TinyBroker() as broker:
            async with LoopClient(broker.endpoint) as client, asyncio.timeout(60):
                await asyncio.gather(*(one(client, number) for number in range(200)))

    run(main())


def test_it_works_in_the_loop_alone(run: Runner) -> None:
    """No thread is started for it."""

    async def main() -> None:
        with TinyBroker() as broker:
            before = set(threading.enumerate())
            async with LoopClient(broker.endpoint) as client:
                await client.infer("a b", model="toy")
                assert set(threading.enumerate()) == before

    run(main())


def test_its_clock_goes_while_nothing_comes(run: Runner) -> None:
    """Nobody is there: the wait ends when it should, by a timer alone."""

    async def main() -> None:
        client = LoopClient("tcp://127.0.0.1:9", connect_timeout_s=0.2)
        with pytest.raises(ConnectError):
            await client.infer("a", model="toy")
        await client.close()

    run(main())


def test_a_broker_given_by_name_is_looked_up_beside_the_loop(run: Runner) -> None:
    """What the look-up finds comes back into the loop."""

    async def main() -> None:
        with TinyBroker() as broker:
            endpoint = broker.endpoint.replace("127.0.0.1", "localhost")
            async with LoopClient(endpoint) as client, asyncio.timeout(10):
                assert (await client.infer("a b", model="toy")).text == "a b"

    run(main())


def test_close_ends_what_is_under_way_and_says_goodbye(run: Runner) -> None:
    """Whoever waits is told, and the broker hears of it."""

    async def main() -> None:
        with TinyBroker(lambda _: []) as broker:
            client = LoopClient(broker.endpoint)
            await client.connect()
            handle = client.submit("stay", model="toy")
            await asyncio.to_thread(broker.wait_for, m.Request)
            await client.close()
            with pytest.raises(CancelledError):
                await handle.result()
            await asyncio.to_thread(broker.wait_for, m.Bye)
            with pytest.raises(CancelledError, match="closed"):
                client.submit("late", model="toy")
            await client.close()

    run(main())


def test_a_cancelled_request_is_given_up_at_the_broker(run: Runner) -> None:
    """As with the thread: cancelling the task is enough."""

    def answer(request: m.Request) -> list[m.ToClient]:
        return [] if "stay" in words_of(request) else echo(request)

    async def main() -> None:
        with TinyBroker(answer) as broker:
            async with LoopClient(broker.endpoint) as client:
                task = asyncio.create_task(client.infer("stay", model="toy"))
                await asyncio.to_thread(broker.wait_for, m.Request)
                task.cancel()
                await asyncio.to_thread(broker.wait_for, m.Cancel)
                assert (await client.infer("go on", model="toy")).text == "go on"

    run(main())


def test_it_belongs_to_one_loop() -> None:
    """A second one would wait for ever for what the first one no longer does; who cancels may be anywhere."""

    async def begin(client: LoopClient, broker: TinyBroker) -> None:
        handle = client.submit("stay", model="toy")
        await asyncio.to_thread(broker.wait_for, m.Request)
        await asyncio.to_thread(handle.cancel)
        await asyncio.to_thread(broker.wait_for, m.Cancel)

    async def again(client: LoopClient) -> None:
        with pytest.raises(CancelledError, match="the event loop of its first use"):
            client.submit("late", model="toy")

    with TinyBroker(lambda _: []) as broker:
        client = LoopClient(broker.endpoint)
        with asyncio.Runner() as first:
            first.run(begin(client, broker))
            with asyncio.Runner() as second:
                second.run(again(client))
            first.run(client.close())


def test_a_core_that_cannot_even_close_keeps_nobody(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sockets are closed all the same, so that the program can end."""

    async def main() -> None:
        with TinyBroker(lambda _: []) as broker:
            client = LoopClient(broker.endpoint)
            await client.connect()

            def fails(*_: object) -> None:
                raise RuntimeError("a fault")

            monkeypatch.setattr("zmqrt.client.core.ClientCore.close", fails)
            monkeypatch.setattr("zmqrt.client.broker_sockets.BrokerSockets.carry_out", fails)
            async with asyncio.timeout(30):
                await client.close()

    run(main())


def test_a_fault_in_the_core_leaves_nobody_waiting(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are told, and who comes later as well."""

    async def main() -> None:
        with TinyBroker(lambda _: []) as broker:
            client = LoopClient(broker.endpoint)
            await client.connect()
            handle = client.submit("stay", model="toy")
            await asyncio.to_thread(broker.wait_for, m.Request)

            def fails(*_: object) -> None:
                raise RuntimeError("a fault")

            monkeypatch.setattr("zmqrt.client.broker_sockets.BrokerSockets.read", fails)
            broker.say(m.Goaway("bye", 1000))
            with pytest.raises(CancelledError):
                await handle.result()
            with pytest.raises(CancelledError, match="a fault"):
                client.submit("late", model="toy")
            await client.close()

    run(main())


def test_chunks_that_are_here_are_taken_together_and_an_error_after_them(run: Runner) -> None:
    """What came before the end of a failed stream is read, and the error with the next question."""
    words = [f"{number:0200}" for number in range(200)]

    def answer(request: m.Request) -> list[m.ToClient]:
        units: list[m.ToClient] = [partial(request, at, [word]) for at, word in enumerate(words)]
        return [*units, refuse(request, 500, "model_raised")]

    async def main() -> None:
        with TinyBroker(answer) as broker:
            async with LoopClient(broker.endpoint) as client:
                handle = client.submit("x", stream=True, model="toy")
                taken: list[list[str]] = []
                while sum(map(len, taken)) < len(words):
                    taken.append([chunk.text for chunk in await handle.next_chunks()])
                with pytest.raises(RequestError):
                    await handle.next_chunks()

        assert [text for texts in taken for text in texts] == words
        assert 1 < max(len(texts) for texts in taken) < 2 * TOGETHER_BYTES / 200

    run(main())
