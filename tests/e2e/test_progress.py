"""A slow answer that makes progress is alive, through every door; one that makes none is not, and says why."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.cli import zmqrt
from support.http import EVENTS, answer_of, asked, events_of
from support.stack import Process, Stack
from zmqrt.client import AsyncClient, RequestError
from zmqrt.client.results import Result

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

RT_S = 1.0
"""The time without progress in this file; each answer takes twice as long."""
TOKENS = 20
STEP = ("step_ms=100", "eos=never", "prefill_ms_per_token=100", "chunk=4", "slots=1", "hang_on_prompt=hang please")
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS}
PLAIN = {"model": "mock", "prompt": "hi", "max_tokens": TOKENS}


class Slow:
    """A fleet of one slow slot, and a bridge with little time."""

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


@pytest.fixture(scope="module")
def slow() -> Generator[Slow]:
    """One fleet for the file."""
    with Stack() as stack:
        yield Slow(stack)


def test_a_whole_answer_of_infer_has_its_whole_time_and_no_more(slow: Slow) -> None:
    """As the contract has it; the 504 names the setting and the header, and the header gives more, to a bound."""
    body = {"prompt": "hi", "max_tokens": TOKENS}
    status, said = slow.post("/infer", body)

    assert status == 504
    assert "REQUEST_TIMEOUT_SEC" in said["detail"]
    assert "X-Request-Timeout" in said["detail"]
    status, said = slow.post("/infer", body, X_Request_Timeout="20")
    assert status == 200
    assert said["text"]
    assert slow.post("/infer", body, X_Request_Timeout="0.5")[0] == 504
    bounded = slow.new_bridge("--max-request-timeout", "1.5")
    assert slow.post("/infer", body, bounded, X_Request_Timeout="20")[0] == 504


@pytest.mark.parametrize("given", ["", "soon", "-1", "0", "nan", "inf", "1e9", "12s", "0.0001"])
def test_a_time_that_is_none_is_refused_by_name(slow: Slow, given: str) -> None:
    """On both kinds of paths, before anything runs."""
    status, said = slow.post("/infer", {"prompt": "hi", "max_tokens": 1}, X_Request_Timeout=given)
    assert (status, said["reason"]) == (400, "bad_header")
    assert "x-request-timeout" in said["detail"]
    status, said = slow.post("/v1/chat/completions", CHAT, X_Request_Timeout=given)
    assert (status, said["error"]["param"]) == (400, "x-request-timeout")


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)])
def test_a_whole_answer_of_the_openai_paths_is_alive_while_it_makes_progress(slow: Slow, path: str, body: Any) -> None:
    """However long that takes."""
    status, said = slow.post(path, body)

    assert status == 200, said
    assert said["usage"]["completion_tokens"] == TOKENS


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/infer", {"prompt": "hi", "max_tokens": TOKENS})]
)
def test_a_stream_is_alive_while_its_prompt_is_read(slow: Slow, path: str, body: Any) -> None:
    """The first token comes after twice the time, and the last one after twice more."""
    prompt = "of twenty tokens"
    body = body | ({"prompt": prompt} if "prompt" in body else {"messages": [{"role": "user", "content": prompt}]})
    with asked(slow.bridge, "POST", path, body | {"stream": True} if path != "/infer" else body, EVENTS) as answer:
        assert answer.status == 200
        words = answer.read().decode()
    assert "error" not in words
    assert "[DONE]" in words or "event: done" in words


def test_the_library_waits_while_there_is_progress(slow: Slow) -> None:
    """Both faces; reading the prompt is progress for whole answers too. A whole time is an argument of its own."""
    prompt = "of twenty tokens"
    with slow.stack.client(timeout_s=RT_S) as client:
        assert client.infer(prompt, max_tokens=TOKENS).usage.completion_tokens == TOKENS
        with pytest.raises(RequestError) as caught:
            client.infer("hi", max_tokens=TOKENS, total_s=1.5)
        assert caught.value.kind.value == "deadline_exceeded"
        with pytest.raises(RequestError), client.stream("hi", max_tokens=TOKENS, total_s=1.5) as stream:
            list(stream)

    async def ask() -> Result:
        async with AsyncClient(slow.stack.clients, timeout_s=RT_S) as client:
            return await client.infer("hi", max_tokens=TOKENS)

    assert asyncio.run(ask()).usage.completion_tokens == TOKENS


def test_waiting_in_a_queue_that_moves_is_progress(slow: Slow) -> None:
    """The third of three waits four times the time, at the broker or in the client's own line."""
    with slow.stack.client(timeout_s=RT_S, max_outstanding=2) as client:
        handles = [client.submit("hi", max_tokens=TOKENS) for _ in range(3)]
        assert [handle.result().usage.completion_tokens for handle in handles] == [TOKENS] * 3


@pytest.mark.slow
def test_waiting_over_http_is_progress_too(slow: Slow) -> None:
    """For whole answers and for streams."""
    with ThreadPoolExecutor(3) as pool:
        whole = [pool.submit(slow.post, "/v1/chat/completions", CHAT) for _ in range(2)]
        streamed = pool.submit(_stream, slow)
        assert [one.result()[0] for one in whole] == [200, 200]
        assert "[DONE]" in streamed.result()


def _stream(slow: Slow) -> str:
    with asked(slow.bridge, "POST", "/v1/chat/completions", CHAT | {"stream": True}) as answer:
        return answer.read().decode()


def test_the_command_line_waits_while_there_is_progress(slow: Slow) -> None:
    """A whole time has a flag; the error of one that is over names both."""
    words = ("--broker", slow.stack.clients, "--max-tokens", str(TOKENS), "--timeout", f"{RT_S}s")
    for command in (("infer", *words, "hi"), ("submit", *words, "--prompt", "hi")):
        done = zmqrt(*command)
        assert done.returncode == 0, done.stderr
    done = zmqrt("infer", *words, "--total-timeout", "1.5s", "hi")
    assert done.returncode == 75
    assert "--timeout" in done.stderr
    url = slow.bridge.endpoints["http"]
    over_http = ("submit", "--url", url, "--max-tokens", str(TOKENS), "--prompt", "hi")
    assert zmqrt(*over_http, "--timeout", "20s").returncode == 0  # it tells the bridge how long it waits
    assert zmqrt(*over_http).returncode == 75  # unsaid, the bridge's own time counts


def test_a_bridge_can_bound_the_whole_time_on_all_paths(slow: Slow) -> None:
    """A setting of its own."""
    bounded = slow.new_bridge("--request-total-timeout", "1.5")

    status, said = slow.post("/v1/chat/completions", CHAT, bounded)
    assert (status, said["error"]["code"]) == (504, "deadline_exceeded")
    with asked(bounded, "POST", "/infer", {"prompt": "hi", "max_tokens": TOKENS}, EVENTS) as answer:
        assert [event.name for event in events_of(answer)][-1] == "error"


def test_without_progress_it_is_over(slow: Slow) -> None:
    """A hung engine: whole, streamed, native, and who waits behind it in the queue. The last test: it stays hung."""
    hung = {"model": "mock", "prompt": "hang please", "max_tokens": 2}
    behind: list[tuple[int, Any]] = []
    thread = threading.Thread(target=lambda: behind.append(slow.post("/v1/completions", PLAIN)))
    with asked(slow.bridge, "POST", "/v1/completions", hung | {"stream": True}) as answer:
        thread.start()
        assert answer.status == 504
        assert "REQUEST_TIMEOUT_SEC" in answer.read().decode()
    thread.join()
    assert behind[0][0] == 504
    assert slow.post("/v1/completions", hung)[0] == 504
    with slow.stack.client(timeout_s=RT_S) as client, pytest.raises(RequestError) as caught:
        client.infer("hi", max_tokens=2)
    assert caught.value.code == 504
