"""A slow answer that makes progress is alive, through every door; one that makes none is not, and says why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest

from support.cli import zmqrt
from support.http import EVENTS, answer_of, asked, events_of
from support.stack import Process, Stack
from zmqrt.client import AsyncClient, RequestError
from zmqrt.client.response import Result
from zmqrt.protocol.errors import ErrorKind

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

T = TypeVar("T")
RT_S = 1.0
"""The time without progress in this file; each answer takes twice as long."""
TOKENS = 20
SLOTS = 4
STEP = (
    *("step_ms=100", "eos=never", "prefill_ms_per_token=30", "chunk=8", f"slots={SLOTS}"),
    "hang_on_prompt=hang please",
)
LONG_PROMPT = "as many tokens as there are letters"
"""Eight of them are read in a step of a third of a second: all of it takes longer than the time."""
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS}
PLAIN = {"model": "mock", "prompt": "hi", "max_tokens": TOKENS}


class Slow:
    """A fleet with one slow engine, and a bridge with little time."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        stack.broker("--request-timeout", str(RT_S))
        options = [word for one in STEP for word in ("--engine-opt", one)]
        stack.worker(*options, "--devices", "0", "--stall-timeout", "600")
        self.bridge = self.new_bridge()

    def new_bridge(self, *arguments: str) -> Process:
        """Start a bridge."""
        return self.stack.bridge("--request-timeout", str(RT_S), *arguments)

    def post(self, path: str, body: object, bridge: Process | None = None, **headers: str) -> tuple[int, Any]:
        """Ask over HTTP."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, said, _ = answer_of(bridge or self.bridge, "POST", path, body, named)
        return status, said


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Call all of them, each on a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]


@pytest.fixture(scope="module")
def slow() -> Generator[Slow]:
    """One fleet for the file."""
    with Stack() as stack:
        yield Slow(stack)


def test_a_whole_answer_of_infer_has_its_whole_time_and_no_more(slow: Slow) -> None:
    """As the contract has it; the 504 names the setting and the header, and the header gives more, to a bound."""
    bounded = slow.new_bridge("--max-request-timeout", "1.5")
    ask = partial(slow.post, "/infer", {"prompt": "hi", "max_tokens": TOKENS})
    usual, patient, hasty, capped = at_once(
        ask,
        partial(ask, X_Request_Timeout="20"),
        partial(ask, X_Request_Timeout="0.5"),
        partial(ask, bounded, X_Request_Timeout="20"),
    )

    assert usual[0] == 504
    assert "REQUEST_TIMEOUT_SEC" in usual[1]["detail"]
    assert "X-Request-Timeout" in usual[1]["detail"]
    assert patient[0] == 200
    assert patient[1]["text"]
    assert (hasty[0], capped[0]) == (504, 504)


@pytest.mark.parametrize("given", ["", "soon", "-1", "0", "nan", "inf", "1e9", "12s", "0.0001"])
def test_a_time_that_is_none_is_refused_by_name(slow: Slow, given: str) -> None:
    """On both kinds of paths, before anything runs."""
    status, said = slow.post("/infer", {"prompt": "hi", "max_tokens": 1}, X_Request_Timeout=given)
    assert (status, said["reason"]) == (400, "bad_header")
    assert "x-request-timeout" in said["detail"]
    status, said = slow.post("/v1/chat/completions", CHAT, X_Request_Timeout=given)
    assert (status, said["error"]["param"]) == (400, "x-request-timeout")


def test_a_whole_answer_of_the_openai_paths_is_alive_while_it_makes_progress(slow: Slow) -> None:
    """However long that takes."""
    asks = [
        partial(slow.post, path, body) for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN))
    ]
    for status, said in at_once(*asks):
        assert status == 200, said
        assert said["usage"]["completion_tokens"] == TOKENS


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/infer", {"prompt": LONG_PROMPT, "max_tokens": TOKENS}),
        pytest.param(
            "/v1/chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": LONG_PROMPT}], "stream": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_stream_is_alive_while_its_prompt_is_read(slow: Slow, path: str, body: Any) -> None:
    """The first token comes after more than the time, and the last one after twice more."""
    words = streamed(slow, path, body)
    assert "error" not in words
    assert "[DONE]" in words or "event: done" in words


def streamed(slow: Slow, path: str, body: Any) -> str:
    """Ask for a stream, and return all of it."""
    with asked(slow.bridge, "POST", path, body, EVENTS) as answer:
        assert answer.status == 200
        return answer.read().decode()


def test_the_library_waits_while_there_is_progress(slow: Slow) -> None:
    """Both faces; reading the prompt is progress for whole answers too. A whole time is an argument of its own."""

    async def asyncly() -> Result:
        async with AsyncClient(slow.stack.clients, timeout_s=RT_S) as client:
            return await client.infer("hi", max_tokens=TOKENS)

    with slow.stack.client(timeout_s=RT_S) as client:

        def whole() -> object:
            return client.infer("hi", max_tokens=TOKENS, total_s=1.5)

        def stream() -> object:
            with client.stream("hi", max_tokens=TOKENS, total_s=1.5) as units:
                return list(units)

        def end_of(ask: Callable[[], object]) -> ErrorKind:
            with pytest.raises(RequestError) as caught:
                ask()
            return caught.value.kind

        with ThreadPoolExecutor(4) as pool:
            ends = [pool.submit(end_of, ask) for ask in (whole, stream)]
            answers = [
                pool.submit(client.infer, LONG_PROMPT, max_tokens=TOKENS),
                pool.submit(lambda: asyncio.run(asyncly())),
            ]
            assert [one.result() for one in ends] == [ErrorKind.DEADLINE] * 2
            assert [one.result().usage.completion_tokens for one in answers] == [TOKENS] * 2


def test_waiting_in_a_queue_that_moves_is_progress(slow: Slow) -> None:
    """Twice as many as there are slots: half of them wait longer than it, at the broker or in the client's own line."""
    many, tokens = 2 * SLOTS, TOKENS // 2
    with slow.stack.client(timeout_s=RT_S, max_outstanding=many - 1) as client:
        handles = [client.submit("hi", max_tokens=tokens) for _ in range(many)]
        assert [handle.result().usage.completion_tokens for handle in handles] == [tokens] * many


@pytest.mark.slow
def test_waiting_over_http_is_progress_too(slow: Slow) -> None:
    """For whole answers and for streams."""
    path = "/v1/chat/completions"
    with ThreadPoolExecutor(2 * SLOTS) as pool:
        whole = [pool.submit(slow.post, path, CHAT) for _ in range(SLOTS)]
        streams = [pool.submit(streamed, slow, path, CHAT | {"stream": True}) for _ in range(SLOTS)]
        assert [one.result()[0] for one in whole] == [200] * SLOTS
        assert all("[DONE]" in one.result() for one in streams)


def test_the_command_line_waits_while_there_is_progress(slow: Slow) -> None:
    """A whole time has a flag; the error of one that is over names both."""
    words = ("--broker", slow.stack.clients, "--max-tokens", str(TOKENS), "--timeout", f"{RT_S}s")
    over_http = ("submit", "--url", slow.bridge.endpoints["http"], "--max-tokens", str(TOKENS), "--prompt", "hi")
    infer, submit, total, told, untold = at_once(
        partial(zmqrt, "infer", *words, "hi"),
        partial(zmqrt, "submit", *words, "--prompt", "hi"),
        partial(zmqrt, "infer", *words, "--total-timeout", "1.5s", "hi"),
        partial(zmqrt, *over_http, "--timeout", "20s"),  # it tells the bridge how long it waits
        partial(zmqrt, *over_http),  # unsaid, the bridge's own time counts
    )
    assert [one.returncode for one in (infer, submit, told)] == [0, 0, 0], (infer.stderr, submit.stderr, told.stderr)
    assert [one.returncode for one in (total, untold)] == [75, 75]
    assert "--timeout" in total.stderr


def test_a_bridge_can_bound_the_whole_time_on_all_paths(slow: Slow) -> None:
    """A setting of its own."""
    bounded = slow.new_bridge("--request-total-timeout", "1.5")

    def last_of_infer() -> str:
        with asked(bounded, "POST", "/infer", {"prompt": "hi", "max_tokens": TOKENS}, EVENTS) as answer:
            return [event.name for event in events_of(answer)][-1]

    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(last_of_infer)
        status, said = slow.post("/v1/chat/completions", CHAT, bounded)
        assert (status, said["error"]["code"]) == (504, "deadline_exceeded")
        assert stream.result() == "error"


def test_without_progress_it_is_over(slow: Slow) -> None:
    """A hung engine: whole, streamed, native, and who waits behind it in the queue. The last test: it stays hung."""
    hung = {"model": "mock", "prompt": "hang please", "max_tokens": 2}
    with asked(slow.bridge, "POST", "/v1/completions", hung | {"stream": True}) as answer:
        assert answer.status == 504
        assert "REQUEST_TIMEOUT_SEC" in answer.read().decode()

    def native() -> tuple[int, Any]:
        with slow.stack.client(timeout_s=RT_S) as client, pytest.raises(RequestError) as caught:
            client.infer("hi", max_tokens=2)
        return caught.value.code, None

    whole = partial(slow.post, "/v1/completions", hung)
    behind = partial(slow.post, "/v1/completions", PLAIN)
    assert [status for status, _ in at_once(native, *[whole] * SLOTS, *[behind] * SLOTS)] == [504] * (2 * SLOTS + 1)
