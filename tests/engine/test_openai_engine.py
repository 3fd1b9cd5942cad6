"""The openai engine before a small server with real sockets that is killed and misbehaves; alone, and as a process."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import psutil
import pytest

from support.engine_fleet import EngineFleet, drive, spec
from support.openai_server import COMMAND, ENV, MODEL, OpenAIServer, answer, chat_answer, serving
from support.tiny import silent
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import AnswerEnd, EngineFatalError, RequestFailedError
from zmqrt.worker.engines.openai_engine import OpenAIEngine, factory

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="nodes are Unix only")]


@pytest.fixture(scope="module")
def running() -> Generator[OpenAIServer]:
    """A server with a context, which lets chats be gone on with as vLLM does."""
    with serving("--owner", "vllm", "--context", "512") as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer) -> OpenAIServer:
    """The same, well again."""
    running.control()
    return running


# --- the engine alone -------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What came of one task."""

    pieces: list[str] = field(default_factory=list[str])
    end: AnswerEnd | None = None
    error: RequestFailedError | None = None
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(self.pieces)


async def listen(engine: OpenAIEngine, told: Told, **task: Any) -> Told:
    """Ask for five greedy words, or another task."""
    given = {"task": "generate", "prompt": "hi", "max_tokens": 5, "temperature": 0.0, **task}
    try:
        async with contextlib.aclosing(cast("Any", engine.generate(given))) as pieces:
            async for piece in pieces:
                if isinstance(piece, AnswerEnd):
                    told.end = piece
                elif piece:
                    told.pieces.append(piece)
                    told.has_begun.set()
    except RequestFailedError as error:
        told.error = error
    return told


async def ask(engine: OpenAIEngine, **task: Any) -> Told:
    """Ask, and wait for the end."""
    return await listen(engine, Told(), **task)


def with_engine(server: OpenAIServer, play: Callable[[OpenAIEngine], Coroutine[Any, Any, None]]) -> None:
    """Run an engine that looks after its server, as its process would."""

    async def run() -> None:
        (engine,) = factory(spec("openai", url=server.url, probe_s="0.05"), silent).values()
        assert isinstance(engine, OpenAIEngine)
        watch = asyncio.create_task(engine.watch())
        try:
            await asyncio.wait_for(play(engine), 60)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError, EngineFatalError):
                await watch
            await engine.close()

    asyncio.run(run())


def test_it_asks_the_server_what_it_has_and_passes_its_text_on(server: OpenAIServer) -> None:
    """Model, context and revision; text, reason and usage of a chat and of a completion."""

    async def play(engine: OpenAIEngine) -> None:
        assert (engine.model, engine.revision, engine.resumes) == (MODEL, f"openai-{MODEL}", True)
        assert (engine.capacity().context, engine.capacity().slots) == (512, 64)

        chat, raw = await asyncio.gather(ask(engine, prompt="hello"), ask(engine, prompt="hello", raw=True))
        rest = await ask(engine, prompt="go", raw=True, delivered=[answer("go", 1)])
        assert (chat.text, raw.text) == (chat_answer("hello", 5), answer("hello", 5))
        assert answer("go", 1) + rest.text == answer("go", 5)
        for told in (chat, raw, rest):
            assert told.end is not None
            assert (told.end.finish_reason, told.end.completion_tokens) == ("length", 5)
        assert (await ask(engine, delivered=["x"] * 5)).end == AnswerEnd(finish_reason="length", completion_tokens=5)

    with_engine(server, play)


def test_a_cancel_closes_the_connection(server: OpenAIServer) -> None:
    """The server sees its reader leave, and its other readers stay."""

    async def play(engine: OpenAIEngine) -> None:
        seen = await asyncio.to_thread(server.seen)
        told = Told()
        leaving = asyncio.create_task(listen(engine, told, max_tokens=100_000))
        staying = asyncio.create_task(ask(engine, max_tokens=40))
        await told.has_begun.wait()
        leaving.cancel()
        while (await asyncio.to_thread(server.seen)).left == seen.left:  # noqa: ASYNC110 - the server is a process
            await asyncio.sleep(0.01)
        assert (await staying).text == chat_answer("hi", 40)

    with_engine(server, play)


def test_before_the_first_token_it_asks_again_and_then_lets_others_have_it(server: OpenAIServer) -> None:
    """A server that is busy for a moment costs nothing; one that stays so hands its requests on."""

    async def play(engine: OpenAIEngine) -> None:
        await asyncio.to_thread(server.control, busy=1)
        assert (await ask(engine)).text == chat_answer("hi", 5)

        await asyncio.to_thread(server.control, busy=2)
        told = await ask(engine)
        assert (told.error and told.error.failure, told.pieces) == ("no_slot", [])
        assert "all places are taken" in str(told.error)

    with_engine(server, play)


def test_whose_fault_it_is_is_told(server: OpenAIServer) -> None:
    """What the server refuses is the caller's, in its words; what it fails at is the model's; the rest passes."""

    async def play(engine: OpenAIEngine) -> None:
        refused = await ask(engine, top_k=3)
        assert (refused.error and refused.error.failure) == "bad_request"
        assert "unexpected fields: ['top_k']" in str(refused.error)
        assert (await ask(engine, extra={"reasoning_effort": "low"})).error is None
        assert (await asyncio.to_thread(server.seen)).bodies[-1]["reasoning_effort"] == "low"

        await asyncio.to_thread(server.control, status=500)
        failed = await ask(engine)
        assert (failed.error and failed.error.failure, "told to" in str(failed.error)) == ("", True)

    with_engine(server, play)


def test_an_answer_that_breaks_off_may_go_on_elsewhere(server: OpenAIServer) -> None:
    """Whoever goes on by its text goes on right."""

    async def play(engine: OpenAIEngine) -> None:
        await asyncio.to_thread(server.control, break_after=3)
        begun = await ask(engine)
        assert (begun.error and begun.error.failure, begun.text) == ("engine_restarted", chat_answer("hi", 3))

        rest = await ask(engine, delivered=begun.pieces)
        assert begun.text + rest.text == chat_answer("hi", 5)
        assert rest.end is not None
        assert rest.end.completion_tokens == 5

    with_engine(server, play)


def test_an_answer_goes_on_within_its_thoughts_or_says_that_it_cannot(server: OpenAIServer) -> None:
    """Its server may tell them apart; what that refuses then it took before, so it is no fault of the caller."""

    async def play(engine: OpenAIEngine) -> None:
        parts = [{"delta": {"reasoning_content": "hm"}}, {"delta": {"content": "Yes."}, "finish_reason": "stop"}]
        await asyncio.to_thread(server.control, script=parts)
        on = await ask(engine, delivered=["<think>", "hm, "])
        await asyncio.to_thread(server.control, status=400)
        begun, new = await ask(engine, delivered=["<think>"]), await ask(engine)

        assert (on.text, on.error) == ("hm</think>Yes.", None)
        assert [told.error.failure for told in (begun, new) if told.error] == ["not_resumable", "bad_request"]

    with_engine(server, play)


def test_a_server_that_calls_itself_unwell_is_gone(server: OpenAIServer) -> None:
    """Its connections may still be there, but what it says of itself counts."""

    async def play(engine: OpenAIEngine) -> None:
        await asyncio.to_thread(server.control, unwell=True)
        with pytest.raises(EngineFatalError, match="/health answers 503"):
            await engine.watch()

    with_engine(server, play)


# --- as a process -----------------------------------------------------------------------------------------------------


def chat(ticket: int, prompt: str = "hi", words: int = 5) -> ipc.SubmitTask:
    """Ask for greedy words."""
    task = {"task": "generate", "prompt": prompt, "max_tokens": words, "temperature": 0.0}
    return ipc.SubmitTask("", ticket, task, 1)


def play_with(server: OpenAIServer, play: Callable[[EngineFleet], Awaitable[None]]) -> None:
    """Run the engine before a server."""
    drive(spec("openai", url=server.url, probe_s="0.1"), play)


async def end_of(fleet: EngineFleet, ticket: int) -> ipc.TextChunk:
    """Wait for the last word about a ticket."""
    (end,) = await fleet.until(lambda: fleet.ends(ticket), f"the end of {ticket}")
    return end


@pytest.mark.slow
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


@pytest.mark.slow
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
