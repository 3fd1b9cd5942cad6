"""The client that a bridge hands out to machines that install nothing, in each shell that is here, by curl and by wget.

What is not here (BusyBox on most machines) is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from support.certificates import make_pem
from support.served import Address, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
SCRIPT = Path(__file__).resolve().parents[2] / "bridge_http" / "static" / "client.sh"
SHELLS = {"sh": ["sh"], "dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
NEEDED = ("awk", "cat", "grep", "mktemp", "ps", "rm", "sed", "tail", "tr")
NEEDED_BY = {"curl": ("curl",), "wget": ("wget",)}
KEY = 's3"cr\\et'
HARD = "a\"b\\c\td €𝄞 %s \\n $(ls) `ls` 'x' -n"


Asked = tuple[dict[str, object], dict[str, str]]


@dataclass
class Stub:
    """A bridge that says what it is told to, and keeps what it was asked."""

    pieces: list[str] = field(default_factory=list[str])
    status: int = 200
    is_cut: bool = False
    asked: list[tuple[dict[str, object], dict[str, str]]] = field(
        default_factory=list[tuple[dict[str, object], dict[str, str]]]
    )
    seen: threading.Event = field(default_factory=threading.Event)

    async def infer(self, request: Request) -> Response:
        """Stream the pieces, or refuse."""
        self.asked.append((json.loads(await request.body()), dict(request.headers)))
        if self.status != 200:
            return JSONResponse({"api_version": "v1", "detail": 'no "room" here'}, self.status)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncGenerator[str]:
        for at, piece in enumerate(self.pieces):
            yield f"event: token\ndata: {json.dumps({'text': piece}, separators=(',', ':'))}\nid: r/{at}\n\n"
            yield f"event: token\ndata: {json.dumps({'text': piece}, separators=(',', ':'), ensure_ascii=False)}\n\n"
        if self.is_cut:
            yield 'event: error\ndata: {"api_version":"v1","detail":"the node is gone"}\n\n'
            return
        yield 'event: done\ndata: {"api_version":"v1","text":"","request_id":"r"}\n\n'


@pytest.fixture
def stub() -> Stub:
    """A bridge."""
    return Stub()


@pytest.fixture
def address(stub: Stub) -> Generator[Address]:
    """Where it is."""
    with serving(Starlette(routes=[Route("/infer", stub.infer, methods=["POST"])])) as address:
        yield address


@pytest.fixture(params=["sh", *(pytest.param(name, marks=pytest.mark.slow) for name in SHELLS if name != "sh")])
def shell(request: pytest.FixtureRequest) -> list[str]:
    """Each shell that is here."""
    words: list[str] = SHELLS[request.param]
    found = shutil.which(words[0])
    if found is None:
        pytest.skip(f"there is no {words[0]}")
    return [found, *words[1:]]


@pytest.fixture(params=["curl", "wget"])
def tools(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH with what a small system has, and one of the two that speak HTTP."""
    for name in (*NEEDED, request.param):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"there is no {name}")
        (tmp_path / name).symlink_to(found)
    return str(tmp_path)


def run(
    shell: list[str], tools: str, address: Address, *words: str, given: str = "", key: str = KEY
) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    env = {"PATH": tools, "ZMQRT_URL": f"http://{address[0]}:{address[1]}/", "ZMQRT_API_KEY": key, "LC_ALL": "C"}
    return subprocess.run(
        [*shell, str(SCRIPT), *words],
        input=given,
        capture_output=True,
        encoding="utf-8",
        env=env,
        timeout=60,
        check=False,
    )


def test_an_answer_is_written_as_it_is(shell: list[str], tools: str, address: Address, stub: Stub) -> None:
    """Whatever characters prompt and answer have, written by JSON in one way or the other."""
    stub.pieces = ["one ", HARD, "\n\nend"]
    done = run(shell, tools, address, "--max-tokens", "7", HARD, "more")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(piece + piece for piece in stub.pieces) + "\n"
    ((body, headers),) = stub.asked
    assert body == {"prompt": f"{HARD} more", "max_tokens": 7, "temperature": 0.7}
    assert headers["x-api-key"] == KEY
    assert headers["content-type"] == "application/json"
    assert headers["accept"] == "text/event-stream"


def test_a_prompt_comes_from_standard_input_too(shell: list[str], tools: str, address: Address, stub: Stub) -> None:
    """With its lines; and without a key no header is sent."""
    assert run(shell, tools, address, "-", given=f"first\n\n{HARD}\x07\r\nlast\n", key="").returncode == 0
    ((body, headers),) = stub.asked

    assert body["prompt"] == f"first\n\n{HARD}\r\nlast"
    assert "x-api-key" not in headers


def test_a_long_prompt_comes_whole(tools: str, address: Address, stub: Stub) -> None:
    """Longer than a line of curl's files and a word of a command line may be: a document to be summed up."""
    prompt = HARD * 10_000
    assert run([shutil.which("sh") or "sh"], tools, address, "-", given=prompt).returncode == 0
    ((body, headers),) = stub.asked

    assert (body["prompt"], headers["x-api-key"]) == (prompt, KEY)


def test_refusals_and_broken_answers_are_failures_with_the_bridge_s_words(
    shell: list[str], tools: str, address: Address, stub: Stub
) -> None:
    """On standard error, so that a script that uses the answer does not take them for one."""
    stub.status = 429
    refused = run(shell, tools, address, "hello")
    stub.status, stub.pieces, stub.is_cut = 200, ["begun"], True
    cut = run(shell, tools, address, "hello")

    assert (refused.returncode, refused.stdout) == (1, "")
    is_bare = "busybox" in shell[0] and (Path(tools) / "wget").exists()  # its own wget tells the status and no more
    assert ("429" if is_bare else 'no "room" here') in refused.stderr
    assert (cut.returncode, cut.stdout) == (1, "begunbegun\n")
    assert "the node is gone" in cut.stderr


def test_what_was_called_wrongly_asks_nobody(shell: list[str], tools: str, address: Address, stub: Stub) -> None:
    """A flag that there is not, a value that is missing or would be JSON of its own."""
    for words in ([], ["--what", "x"], ["--max-tokens"], ["--max-tokens", '1,"x":2', "hello"]):
        done = run(shell, tools, address, *words)
        assert done.returncode == 2, words
        assert "sh client.sh" in done.stderr
    assert stub.asked == []


def test_tokens_are_shown_when_they_come_and_the_key_stands_in_no_command_line(tools: str) -> None:
    """The second half comes only after the first was read; meanwhile every user may look at the list of processes."""
    seen = threading.Event()

    async def infer(_request: Request) -> Response:
        async def events() -> AsyncGenerator[str]:
            yield 'event: token\ndata: {"text":"first"}\n\n'
            await asyncio.to_thread(seen.wait, 30)
            yield 'event: token\ndata: {"text":" second"}\n\nevent: done\ndata: {}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    key = "very-secret-indeed"
    with serving(Starlette(routes=[Route("/infer", infer, methods=["POST"])])) as address:
        env = {"PATH": tools, "ZMQRT_URL": f"http://{address[0]}:{address[1]}", "ZMQRT_API_KEY": key}
        with subprocess.Popen(
            [shutil.which("sh") or "sh", str(SCRIPT), "hello"], env=env, stdout=subprocess.PIPE
        ) as asking:
            assert asking.stdout is not None
            first = os.read(asking.stdout.fileno(), 100)
            listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
            seen.set()
            rest = asking.stdout.read()

    assert (first, rest) == (b"first", b" second\n")
    assert str(SCRIPT) in listed
    assert key not in listed


def test_tls_is_checked(stub: Stub, tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused; one that was named is taken."""
    pem = make_pem(tmp_path)
    app = Starlette(routes=[Route("/infer", stub.infer, methods=["POST"])])
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    with serving(app, tls_cert=pem.chain, tls_key=pem.key) as (_, port):
        env = {**os.environ, "ZMQRT_URL": f"https://localhost:{port}", "ZMQRT_API_KEY": KEY}
        strange = subprocess.run(["sh", str(SCRIPT), "x"], env=env, capture_output=True, check=False)
        env["CURL_CA_BUNDLE"] = str(pem.chain)
        known = subprocess.run(["sh", str(SCRIPT), "x"], env=env, capture_output=True, check=False)

    assert (strange.returncode, known.returncode) == (1, 0)
    assert len(stub.asked) == 1
