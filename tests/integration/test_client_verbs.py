"""The client's verbs over real sockets, against a tiny broker: both faces, many threads, many tasks, any loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.stack import eventually
from support.tiny_broker import TinyBroker, echo, final, partial, refuse, service, words_of
from zmqrt.client import (
    AsyncClient,
    BusyError,
    CancelledError,
    Client,
    DeadlineError,
    NotFoundError,
)
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import ErrorKind

pytestmark = pytest.mark.integration


def in_uvloop(main: Coroutine[Any, Any, None]) -> None:
    """Run in uvloop, where there is one."""
    if sys.platform == "win32":
        pytest.skip("uvloop has no Windows")
    import uvloop

    uvloop.run(main)


RUNNERS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(in_uvloop, id="uvloop")]
Runner = Callable[[Coroutine[Any, Any, None]], None]


def never(_: m.Request) -> list[m.ToClient]:
    """Leave every request unanswered."""
    return []


def test_infer_returns_the_whole_result() -> None:
    """One call, one answer."""
    with TinyBroker() as broker, Client(broker.endpoint) as client:
        result = client.infer("hello big world", model="toy", max_tokens=5, seed=7)

    assert result.text == "hello big world"
    assert result.token_ids == [0, 1, 2]
    assert (result.finish_reason, result.usage.total_tokens, result.model) == ("stop", 4, "toy")
    (request,) = broker.requests()
    assert request.flags == m.IDEMPOTENT | m.RESUMABLE | m.SEEDED
    assert tasks.decode_task(request.body) == tasks.Generate(prompt="hello big world", max_tokens=5, seed=7)


def test_chunks_joined_are_the_result() -> None:
    """Text held back to the end comes as a last chunk without tokens."""

    def answer(request: m.Request) -> list[m.ToClient]:
        words = words_of(request)
        return [*(partial(request, i, [word]) for i, word in enumerate(words)), final(request, words, tail=" END")]

    with TinyBroker(answer) as broker, Client(broker.endpoint) as client:
        with client.stream("one two three", model="toy") as stream:
            assert stream.result is None
            chunks = list(stream)

        assert [chunk.text for chunk in chunks] == ["one", " two", " three", " END"]
        assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]
        assert stream.result is not None
        assert stream.result.text == "one two three END"
        assert stream.result.token_ids == [0, 1, 2]


def test_a_handle_streams_and_ends_with_the_result() -> None:
    """`submit` returns at once; the result is there after the last chunk, or without reading any."""
    with TinyBroker() as broker, Client(broker.endpoint) as client:
        read = client.submit("a b", stream=True, model="toy")
        unread = client.submit("c d", stream=True, model="toy")
        unary = client.submit("e f", model="toy")

        assert "".join(chunk.text for chunk in read) == read.result().text == "a b"
        assert unread.result(5).text == "c d"
        assert unary.result(5).text == "e f"
        with pytest.raises(TypeError, match="stream=True"):
            next(iter(unary))


def test_embed_returns_a_vector_for_each_input() -> None:
    """As arrays of floats, without numpy; the model is the only one that can embed."""
    with (
        TinyBroker(services=[service("toy"), service("vec", "embed")]) as broker,
        Client(broker.endpoint) as client,
    ):
        vectors = client.embed(["a", "b"])

    assert [list(one) for one in vectors] == [[1.0, 1.0, 1.0]] * 2


def test_rerank_and_classify_find_their_models() -> None:
    """Of both faces: documents by their place, the best first; labels, the likeliest first."""

    async def ask(endpoint: str) -> list[object]:
        async with AsyncClient(endpoint) as client:
            return [await client.rerank("q", ["a", "b", "c"], top_n=2), await client.classify(["a", "b"])]

    services = [service("toy"), service("ranks", "rerank"), service("labels", "classify")]
    with TinyBroker(services=services) as broker, Client(broker.endpoint) as client:
        ranked, labels = client.rerank("q", ["a", "b", "c"], top_n=2), client.classify(["a", "b"])
        assert asyncio.run(ask(broker.endpoint)) == [ranked, labels]
        ranking = client.submit_task(tasks.Rerank(query="q", documents=["a", "b", "c"])).result()
        classes = client.submit_task(tasks.Classify(input="a")).result()

    assert [(one.index, one.score) for one in ranked] == [(2, 0.2), (1, 0.1)]
    assert [list(row.items()) for row in labels] == [[("good", 0.75), ("bad", 0.25)]] * 2
    assert (ranking.model, ranking.scores) == ("ranks", [0.0, 0.1, 0.2])
    assert (classes.model, classes.labels) == ("labels", ["bad", "good"])


def test_status_and_models_are_asked_of_the_broker() -> None:
    """Both in one glance."""
    with TinyBroker() as broker, Client(broker.endpoint) as client:
        assert client.status().broker_id == "tiny"
        assert [one.service for one in client.models()] == ["toy"]


def test_a_node_is_drained_by_name() -> None:
    """Both faces return the broker's words, or raise what it refused with."""

    async def ask(endpoint: str) -> str:
        async with AsyncClient(endpoint) as client:
            return (await client.drain("tiny-node")).text

    with TinyBroker() as broker, Client(broker.endpoint) as client:
        assert client.drain("tiny-node").deadline_s == 30.0
        assert asyncio.run(ask(broker.endpoint)) == "tiny-node is draining"
        with pytest.raises(NotFoundError, match="there are: tiny-node"):
            client.drain("another")


def test_the_default_model_is_asked_for_text_and_preferred_for_vectors() -> None:
    """Which model embeds is for the broker to say, unless the default can."""
    with TinyBroker(services=[service("big"), service("small"), service("vec", "embed")]) as broker:
        with Client(broker.endpoint) as client:
            assert client.infer("hi").model == "big"
        with Client(broker.endpoint, default_model="small") as client:
            assert client.infer("hi").model == "small"
            client.embed("hi")
        requests = broker.requests()

    assert [(one.service, one.ext.get("task"), one.ext.get("prefer")) for one in requests] == [
        ("", "generate", None),
        ("small", None, None),
        ("", "embed", "small"),
    ]


def test_a_thousand_requests_from_twenty_threads() -> None:
    """All through one connection, each with its own answer."""

    def fifty(thread: int) -> None:
        handles = [client.submit(f"{thread} {i}", model="toy") for i in range(25)]
        for i in range(25, 50):
            assert client.infer(f"{thread} {i}", model="toy").text == f"{thread} {i}"
        for i, handle in enumerate(handles):
            assert handle.result(30).text == f"{thread} {i}"

    with TinyBroker() as broker, Client(broker.endpoint) as client, ThreadPoolExecutor(20) as pool:
        list(pool.map(fifty, range(20)))

    assert len({one.rid for one in broker.requests()}) == 1000


def test_five_hundred_streams_at_once() -> None:
    """More than the broker allows at a time: the rest waits its turn."""
    with TinyBroker() as broker, Client(broker.endpoint) as client:
        handles = [client.submit(f"stream number {i}", stream=True, model="toy") for i in range(500)]
        texts = ["".join(chunk.text for chunk in handle) for handle in handles]

    assert texts == [f"stream number {i}" for i in range(500)]


@pytest.mark.parametrize("run", RUNNERS)
def test_a_thousand_tasks_in_any_loop(run: Runner) -> None:
    """The loop is only ever called by `call_soon_threadsafe`."""

    async def main() -> None:
        async with AsyncClient(broker.endpoint) as client:
            results = await asyncio.gather(*(client.infer(f"task {i}", model="toy") for i in range(1000)))
            assert [result.text for result in results] == [f"task {i}" for i in range(1000)]
            async with client.stream("one two", model="toy") as stream:
                assert [chunk.text async for chunk in stream] == ["one", " two"]
            assert stream.result is not None
            assert (await client.models())[0].service == "toy"
            assert (await client.status()).broker_id == "tiny"

    with TinyBroker() as broker:
        run(main())


def test_one_async_client_serves_loops_of_several_threads() -> None:
    """Each loop has its own bell."""

    async def ask(name: str) -> str:
        return "".join([(await client.infer(f"{name} {i}", model="toy")).text for i in range(20)])

    def run_ask(name: str) -> str:
        return asyncio.run(ask(name))

    with TinyBroker() as broker, ThreadPoolExecutor(4) as pool:
        client = AsyncClient(broker.endpoint)
        texts = list(pool.map(run_ask, "abcd"))
        asyncio.run(client.close())

    assert [text[:3] for text in texts] == ["a 0", "b 0", "c 0", "d 0"]


def test_cancelling_a_task_cancels_its_request() -> None:
    """The broker is told, and the others go on."""

    async def main() -> None:
        async with AsyncClient(broker.endpoint) as client:
            task = asyncio.create_task(client.infer("hi", model="toy"))
            other = client.submit("other", model="toy")
            await asyncio.to_thread(broker.wait_for, m.Request, 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            other.cancel()
            with pytest.raises(CancelledError):
                await other.result()
            with pytest.raises(TimeoutError):
                await client.submit("third", model="toy").result(0.05)

    with TinyBroker(never) as broker:
        asyncio.run(main())
        broker.wait_for(m.Cancel, 2)


@pytest.mark.parametrize("leave", ["with", "break", "close"])
def test_a_stream_left_early_is_cancelled(leave: str) -> None:
    """By the end of its block, by `close`, or by being forgotten."""

    def endless(request: m.Request) -> list[m.ToClient]:
        return [partial(request, 0, ["one"]), partial(request, 1, [" two"])]

    with TinyBroker(endless) as broker, Client(broker.endpoint) as client:
        if leave == "with":
            with client.stream("x", model="toy") as stream:
                next(stream)
        elif leave == "close":
            stream = client.stream("x", model="toy")
            next(stream)
            stream.close()
        else:
            for _ in client.stream("x", model="toy"):
                break
            gc.collect()

        (cancel,) = broker.wait_for(m.Cancel)
        assert isinstance(cancel, m.Cancel)
        assert cancel.rid == broker.requests()[0].rid


def test_an_async_stream_left_early_is_cancelled() -> None:
    """The same for `async with`."""

    async def main() -> None:
        async with AsyncClient(broker.endpoint) as client, client.stream("x", model="toy") as stream:
            async for _ in stream:
                break
            await stream.aclose()
            await asyncio.to_thread(broker.wait_for, m.Cancel)

    with TinyBroker(lambda request: [partial(request, 0, ["one"])]) as broker:
        asyncio.run(main())


def test_a_second_thread_that_reads_is_told_so_and_waits_for_no_end_that_another_has_had() -> None:
    """Who cancels what another thread reads joins that thread first; `result` then says how it ended."""
    with TinyBroker(lambda request: [partial(request, 0, ["one"])]) as broker, Client(broker.endpoint) as client:
        handle = client.submit("x", stream=True, model="toy")
        assert handle.next_chunk() is not None
        ended: list[BaseException] = []

        def read() -> None:
            try:
                handle.next_chunk()
            except CancelledError as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()

        def is_told() -> bool:
            with pytest.raises((RuntimeError, TimeoutError)) as caught:  # until that thread has come so far
                handle.result(0.05)
            return isinstance(caught.value, RuntimeError)

        eventually(is_told, what="the refusal")
        handle.cancel()
        reader.join()
        with pytest.raises(CancelledError):
            handle.result()

    assert len(ended) == 1


def test_a_second_task_that_reads_is_told_so() -> None:
    """The first one is woken, and has what comes."""

    async def main() -> None:
        async with AsyncClient(broker.endpoint) as client:
            handle = client.submit("x", model="toy")
            first = asyncio.create_task(handle.result())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="somebody else is reading"):
                await handle.result()
            handle.cancel()
            with pytest.raises(CancelledError):
                await first

    with TinyBroker(never) as broker:
        asyncio.run(main())


def test_a_slow_reader_loses_its_own_stream_only() -> None:
    """What had been received can still be read, then the reason comes; the others end well."""
    big = "x" * 10_000

    def answer(request: m.Request) -> list[m.ToClient]:
        if words_of(request)[0] == "slow":
            return [partial(request, i, [big]) for i in range(200)]
        return echo(request)

    with TinyBroker(answer) as broker, Client(broker.endpoint) as client:
        slow = client.submit("slow", stream=True, model="toy")
        broker.wait_for(m.Cancel)
        assert client.infer("fast", model="toy").text == "fast"
        with pytest.raises(CancelledError, match="too slow") as caught:
            slow.result(5)

    assert caught.value.kind is ErrorKind.SLOW_READER
    assert caught.value.resume_n > 100


def test_an_async_slow_reader_loses_its_own_stream_only() -> None:
    """The same in a loop, where nothing else is held up."""
    big = "x" * 10_000

    async def main() -> None:
        async with AsyncClient(broker.endpoint) as client:
            slow = client.submit("slow", stream=True, model="toy")
            await asyncio.to_thread(broker.wait_for, m.Cancel)
            with pytest.raises(CancelledError, match="too slow"):
                await slow.result()

    with TinyBroker(lambda request: [partial(request, i, [big]) for i in range(200)]) as broker:
        asyncio.run(main())


def test_a_surplus_is_absorbed_and_can_be_seen_when_wanted() -> None:
    """By default a busy broker is asked again; `retries=0` tells its advice."""
    refused: set[bytes] = set()

    def busy_once(request: m.Request) -> list[m.ToClient]:
        if request.rid in refused:
            return echo(request)
        refused.add(request.rid)
        return [refuse(request, 429, "queue_full", 100)]

    with TinyBroker(busy_once) as broker, Client(broker.endpoint) as client:
        assert client.infer("hi", model="toy").text == "hi"
        with pytest.raises(BusyError) as caught:
            client.infer("hi", model="toy", retries=0, request_id="mine")

    assert caught.value.retry_after_s == 0.1
    assert "(request mine)" in str(caught.value)


def test_an_answer_that_never_comes_ends_at_its_deadline() -> None:
    """And its request is cancelled at the broker."""
    with TinyBroker(never) as broker, Client(broker.endpoint) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.3 s from toy"):
            client.infer("hi", model="toy", timeout_s=0.3)
        assert time.monotonic() - started < 1.5
        broker.wait_for(m.Cancel)


def test_closing_ends_everything_that_waits() -> None:
    """In whatever thread it waits."""
    with TinyBroker(never) as broker:
        client = Client(broker.endpoint)
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                client.infer("hi", model="toy")
            except CancelledError as error:
                errors.append(error)

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        broker.wait_for(m.Request, 3)
        client.close()
        for thread in threads:
            thread.join(5)
        broker.wait_for(m.Bye)

        assert len(errors) == 3
        with pytest.raises(CancelledError, match="closed"):
            client.infer("hi", model="toy")


def test_a_client_lives_as_long_as_its_answers_are_waited_for() -> None:
    """Even when only the handle is held."""

    async def main() -> None:
        handle = AsyncClient(broker.endpoint).submit("d e", stream=True, model="toy")
        gc.collect()
        assert [chunk.text async for chunk in handle] == ["d", " e"]

    with TinyBroker() as broker:
        handle = Client(broker.endpoint).submit("a", model="toy")
        gc.collect()
        assert handle.result(5).text == "a"
        assert [chunk.text for chunk in Client(broker.endpoint).stream("b c", model="toy")] == ["b", " c"]
        asyncio.run(main())


def test_a_forgotten_client_ends_its_thread() -> None:
    """No thread outlives the last reference."""
    with TinyBroker() as broker:
        before = threading.active_count()
        client = Client(broker.endpoint)
        client.infer("hi", model="toy")
        del client
        gc.collect()
        give_up_at = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < give_up_at:
            time.sleep(0.01)

        assert threading.active_count() == before
