"""The openai engine in a process of its own, before a small server with real sockets that is killed and misbehaves."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import msgspec
import psutil
import pytest

from support.engine_fleet import EngineFleet, drive, spec
from support.openai_server import COMMAND, ENV, MODEL, OpenAIServer, answer, chat_answer, serving
from zmqrt.worker.engines import ipc

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="nodes are Unix only"),
]


@pytest.fixture(scope="module")
def running() -> Generator[OpenAIServer]:
    """A server with a context, which lets chats be gone on with as vLLM does."""
    with serving("--owner", "vllm", "--context", "512", "--step-ms", "5") as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer) -> OpenAIServer:
    """The same, well again."""
    running.control()
    return running


def chat(ticket: int, prompt: str = "hi", words: int = 5, **fields: Any) -> ipc.SubmitTask:
    """Ask for greedy words."""
    task = {"task": "generate", "prompt": prompt, "max_tokens": words, "temperature": 0.0, **fields}
    return ipc.SubmitTask("", ticket, task, 1)


def play_with(server: OpenAIServer, play: Callable[[EngineFleet], Awaitable[None]], **options: str) -> None:
    """Run the engine before a server."""
    drive(spec("openai", url=server.url, probe_s="0.1", **options), play)


async def end_of(fleet: EngineFleet, ticket: int) -> ipc.TextChunk:
    """Wait for the last word about a ticket."""
    (end,) = await fleet.until(lambda: fleet.ends(ticket), f"the end of {ticket}")
    return end


def test_it_asks_the_server_what_it_has_and_passes_its_text_on(server: OpenAIServer) -> None:
    """Model, context and revision; text, reason and usage of a chat and of a completion."""

    async def play(fleet: EngineFleet) -> None:
        (service,) = await fleet.ready()
        assert (service.model, service.capacity.context, service.capacity.slots) == (MODEL, 512, 64)
        assert (service.revision, service.resumes) == (f"openai-{MODEL}", True)

        fleet.send(chat(1, "hello"), chat(2, "hello", raw=True), chat(3, "go", raw=True, delivered=[answer("go", 1)]))
        ends = [await end_of(fleet, ticket) for ticket in (1, 2, 3)]
        assert "".join(fleet.text(1)) == chat_answer("hello", 5)
        assert "".join(fleet.text(2)) == answer("hello", 5)
        assert "".join(fleet.text(3)) == answer("go", 5).removeprefix(answer("go", 1))
        assert [end.error for end in ends] == [None] * 3
        assert [end.ending.completion_tokens for end in ends if end.ending] == [5, 5, 5]
        assert {end.ending.finish_reason for end in ends if end.ending} == {"length"}

    play_with(server, play)


def test_a_cancel_closes_the_connection(server: OpenAIServer) -> None:
    """The server sees its reader leave, and its other readers stay."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        left = server.seen().left
        fleet.send(chat(1, words=5000), chat(2, words=40))
        await fleet.until(lambda: any(fleet.text(1)) and any(fleet.text(2)))
        fleet.send(ipc.CancelTicket(1))
        assert (await end_of(fleet, 1)).error == "cancelled"
        await fleet.until(lambda: server.seen().left == left + 1, "the end of its connection")
        assert (await end_of(fleet, 2)).error is None

    play_with(server, play)


def test_before_the_first_token_it_asks_again_and_then_lets_others_have_it(server: OpenAIServer) -> None:
    """A server that is busy for a moment costs nothing; one that stays so hands its requests on."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        server.control(busy=1)
        fleet.send(chat(1))
        assert (await end_of(fleet, 1)).error is None
        assert "".join(fleet.text(1)) == chat_answer("hi", 5)

        server.control(busy=2)
        fleet.send(chat(2))
        end = await end_of(fleet, 2)
        assert (end.failure, fleet.text(2)) == ("no_slot", [])
        assert "all places are taken" in (end.error or "")

    play_with(server, play)


def test_whose_fault_it_is_is_told(server: OpenAIServer) -> None:
    """What the server refuses is the caller's, in its words; what it fails at is the model's."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(chat(1, top_k=3), chat(2, extra={"reasoning_effort": "low"}))
        refused = await end_of(fleet, 1)
        assert (refused.failure, "unexpected fields: ['top_k']" in (refused.error or "")) == ("bad_request", True)
        assert (await end_of(fleet, 2)).error is None
        assert server.seen().bodies[-1]["reasoning_effort"] == "low"

        server.control(status=500)
        fleet.send(chat(3))
        failed = await end_of(fleet, 3)
        assert (failed.failure, "told to" in (failed.error or "")) == ("", True)

    play_with(server, play)


def test_an_answer_that_breaks_off_may_go_on_elsewhere(server: OpenAIServer) -> None:
    """The server is well, so the process lives; whoever goes on by its text goes on right."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        server.control(break_after=3)
        fleet.send(chat(1))
        end = await end_of(fleet, 1)
        begun = [text for text in fleet.text(1) if text]
        assert (end.failure, "".join(begun)) == ("engine_restarted", chat_answer("hi", 3))

        fleet.send(chat(2, delivered=begun))
        end = await end_of(fleet, 2)
        assert "".join(begun + fleet.text(2)) == chat_answer("hi", 5)
        assert end.ending is not None
        assert end.ending.completion_tokens == 5
        assert not fleet.exits

    play_with(server, play)


def test_a_server_that_is_gone_ends_the_process_and_the_next_one_waits_for_it() -> None:
    """Each request is handed on and none is blamed; nobody is served before the server is back."""
    doomed = OpenAIServer("--step-ms", "5")

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(*(chat(ticket, words=5000) for ticket in range(1, 9)))
        await fleet.until(lambda: all(fleet.text(ticket) for ticket in range(1, 9)))
        doomed.kill()
        _, reason, is_restarted = await fleet.exit()
        assert ("the server behind this node is gone" in reason, is_restarted) == (True, True)
        assert {(await end_of(fleet, ticket)).failure for ticket in range(1, 9)} == {"engine_restarted"}

        fleet.forget()
        await fleet.until(lambda: any(one.phase == "loading" for one in fleet.of(ipc.EngineLoading)))
        assert not fleet.of(ipc.EngineReady)
        doomed.start()
        await fleet.ready()
        fleet.send(chat(1))
        assert (await end_of(fleet, 1)).error is None

    try:
        play_with(doomed, play)
    finally:
        doomed.kill()


def test_a_server_that_calls_itself_unwell_is_gone(server: OpenAIServer) -> None:
    """Its connections may still be there, but what it says of itself counts."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        server.control(unwell=True)
        _, reason, _ = await fleet.exit()
        assert "/health answers 503" in reason

    play_with(server, play)


def test_a_command_is_a_server_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started at a free port, started again when it dies, gone with its engine."""
    monkeypatch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
    command = f"{shlex.join(COMMAND)} --port {{port}} --models a/b,c"
    servers: list[psutil.Process] = []

    async def play(fleet: EngineFleet) -> None:
        services = await fleet.ready()
        assert [service.name for service in services] == ["=a/b", "=c"]
        servers.extend(psutil.Process(fleet.supervisor.pids["mock:0"]).children())
        fleet.forget()
        servers[0].kill()
        _, reason, _ = await fleet.exit()
        assert "`command` had started has ended with -9" in reason
        await fleet.ready()
        servers.extend(psutil.Process(fleet.supervisor.pids["mock:0"]).children())

    of = spec("openai", command=command, probe_s="0.1")
    drive(msgspec.structs.replace(of, model="openai"), play)  # no name was given: the server's own are taken

    psutil.wait_procs(servers, timeout=10)
    assert len(servers) == 2
    assert not [one for one in servers if one.is_running()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "url=http"),
        ({"url": "localhost:8000"}, "url=http"),
        ({"url": "http://127.0.0.1:1", "speed": "9"}, "speed"),
        ({"url": "http://127.0.0.1:1", "key_env": "NOT_THERE"}, "no such variable"),
        ({"command": "/not/a/program --port {port}"}, "not/a/program"),
    ],
)
def test_what_cannot_work_is_said_and_not_tried_again(options: dict[str, str], words: str) -> None:
    """The option is named."""

    async def play(fleet: EngineFleet) -> None:
        _, reason, is_restarted = await fleet.exit()
        assert (words in reason, is_restarted) == (True, False), reason

    drive(spec("openai", **options), play)
