"""One caller's mistake is one caller's: the client's thread serves all others on, whatever it is given."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from support.tiny_broker import TinyBroker
from zmqrt.client import AsyncClient, BadRequestError, Client, NotFoundError, calls
from zmqrt.client.config import ClientConfig
from zmqrt.client.mailbox import Mailbox
from zmqrt.client.response import Event
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import ConfigurationError, RequestError

pytestmark = pytest.mark.integration
HALF = "a\ud83d"
CONFIG = ClientConfig(endpoints=("tcp://a:1",), timeout_s=5.0)


def never(_: m.Request) -> list[m.ToClient]:
    """Leave every request unanswered."""
    return []


def echo_but(request: m.Request) -> list[m.ToClient]:
    """Answer all but those that are to stay under way."""
    from support.tiny_broker import echo

    return [] if b"stay" in request.body else echo(request)


MISTAKES: dict[str, Callable[[Any], Any]] = {
    "infer": lambda client: client.infer(HALF, model="toy"),
    "infer of bytes": lambda client: client.infer(b"x", model="toy"),
    "a model": lambda client: client.infer("x", model=HALF),
    "a request id": lambda client: client.infer("x", model="toy", request_id=HALF),
    "a trace": lambda client: client.infer("x", model="toy", traceparent=HALF),
    "a party": lambda client: client.infer("x", model="toy", party=HALF),
    "a time": lambda client: client.infer("x", model="toy", timeout_s=math.nan),
    "embed": lambda client: client.embed([HALF]),
    "rerank": lambda client: client.rerank("q", [HALF]),
    "rerank of one text": lambda client: client.rerank("q", "text"),
    "rerank of none": lambda client: client.rerank("q", []),
    "rerank for none": lambda client: client.rerank("q", ["a"], top_n=0),
    "classify": lambda client: client.classify([HALF]),
    "explain": lambda client: client.explain(HALF),
    "explain of bytes": lambda client: client.explain(b"x"),
    "drain": lambda client: client.drain(HALF),
    "drain of nothing": lambda client: client.drain(None),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_costs_no_other_stream_of_the_client(mistake: Callable[[Any], Any]) -> None:
    """It is refused before the thread hears of it; what is under way goes on, and new work is taken."""
    with TinyBroker(echo_but) as broker, Client(broker.endpoint) as client:
        other = client.submit("stay", stream=True, model="toy")
        with pytest.raises((BadRequestError, NotFoundError)):
            mistake(client)

        assert client.infer("still here", model="toy").text == "still here"
        with pytest.raises(TimeoutError):
            other.result(0.05)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_same_of_the_asynchronous_client(mistake: Callable[[Any], Any]) -> None:
    """Both faces check alike."""

    async def main() -> None:
        with TinyBroker(echo_but) as broker:
            async with AsyncClient(broker.endpoint) as client:
                other = client.submit("stay", stream=True, model="toy")
                with pytest.raises((BadRequestError, NotFoundError)):
                    await mistake(client)

                assert (await client.infer("still here", model="toy")).text == "still here"
                with pytest.raises(TimeoutError):
                    await other.result(0.05)

    asyncio.run(main())


def test_a_stream_refuses_its_arguments_when_it_is_made() -> None:
    """It would else fail in the loop that reads it."""
    with TinyBroker() as broker, Client(broker.endpoint) as client:
        with pytest.raises(BadRequestError, match="prompt"):
            client.stream(HALF, model="toy")
        handle = client.submit("x", model="toy")
        for wrong in (math.nan, "3"):
            with pytest.raises(BadRequestError, match="timeout"):
                handle.result(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

        assert handle.result(10).text == "x"


@pytest.mark.parametrize(
    "broken",
    [{"cost": object()}, {"service": HALF}, {"ext": {"x": object()}}, {"timeout_s": math.nan}, {"priority": 2**80}],
    ids=lambda one: next(iter(one)),
)
def test_what_slips_through_and_cannot_be_packed_ends_alone(broken: dict[str, Any]) -> None:
    """The last line of defence: behind every check, one message that cannot travel takes no other with it."""
    with TinyBroker(echo_but) as broker, Client(broker.endpoint) as client:
        other = client.submit("stay", stream=True, model="toy")
        call = calls.generate(CONFIG, "x", stream=False, options={"model": "toy"})
        mailbox = Mailbox()
        client._io.submit(structs.replace(call, **broken), mailbox)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - no public way leads there
        end = mailbox.take(client._io, 10)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

        assert isinstance(end, RequestError)
        assert "cannot be" in end.text
        assert client.infer("still here", model="toy").text == "still here"
        with pytest.raises(TimeoutError):
            other.result(0.05)


def test_a_question_that_cannot_be_packed_ends_alone() -> None:
    """As for a request."""
    with TinyBroker() as broker, Client(broker.endpoint) as client:
        mailbox = Mailbox()
        client._io.ask(lambda qid: m.Query(qid, HALF), mailbox, timeout_s=5.0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as above
        end = mailbox.take(client._io, 10)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

        assert isinstance(end, BadRequestError)
        assert client.status().broker_id == "tiny"


def test_a_reader_that_fails_harms_no_other() -> None:
    """A tracer's exporter, say, runs in the client's thread."""

    class Broken:
        def put(self, event: Event) -> bool:
            raise RuntimeError("the exporter is gone")

    with TinyBroker() as broker, Client(broker.endpoint) as client:
        call = calls.generate(CONFIG, "x", stream=True, options={"model": "toy"})
        client._io.submit(call, Broken())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as above

        assert client.infer("still here", model="toy").text == "still here"


def test_a_broker_that_names_rubbish_as_another_one_harms_nobody() -> None:
    """Endpoints come over the wire, too; they are text, and that is all that is known of them."""
    with TinyBroker(never) as broker, Client([broker.endpoint, "tcp://127.0.0.1:1"]) as client:
        for rubbish in ("tcp://a\0b:1", "tcp://", "ipc://\0", "x://y", "tcp://127.0.0.1:99999"):
            client._io._core.connections._endpoints.learn([rubbish])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - what WELCOME does
        client._io._core.connections._endpoints._names = ("tcp://a\0b:1", broker.endpoint)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

        assert client.status().broker_id == "tiny"


def test_an_endpoint_that_cannot_be_one_is_refused_at_the_start() -> None:
    """In words, whatever is in it."""
    for rubbish in ("tcp://a\0b:1", f"tcp://{HALF}:1", "tcp://a b:1", "tcp://a:1\n"):
        with pytest.raises(ConfigurationError):
            Client([rubbish + "x"])
