"""HTTP clients that nobody here wrote, and habits of theirs, against a real bridge with a fleet."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from support.http import address_of
from support.served import connect, read_all, read_until, statuses
from support.stack import Process, Stack, eventually, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
CHAT = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8})
KEEP_ALIVE_S = 2.0
JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] words) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // asks for HTTP/2 by an Upgrade
        for (int i = 0; i < 3; i++) {
            HttpRequest.BodyPublisher body = i == 1
                ? HttpRequest.BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(words[1].getBytes()))
                : HttpRequest.BodyPublishers.ofString(words[1]);
            HttpRequest ask = HttpRequest.newBuilder(URI.create(words[0] + "/v1/chat/completions"))
                .header("content-type", "application/json").POST(body).build();
            HttpResponse<String> answer = client.send(ask, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
        }
        HttpRequest list = HttpRequest.newBuilder(URI.create(words[0] + "/v1/models")).build();
        System.out.println(client.send(list, HttpResponse.BodyHandlers.ofString()).statusCode());
    }
}
"""


@pytest.fixture(scope="module")
def fleet() -> Generator[Stack]:
    """A fleet that takes 20 ms a token."""
    with running(worker=("--engine", "mock", "--engine-opt", "step_ms=20,eos=never")) as stack:
        yield stack


@pytest.fixture(scope="module")
def bridge(fleet: Stack) -> Process:
    """A bridge to it that keeps connections for a short while."""
    return fleet.bridge("--keep-alive-timeout", f"{KEEP_ALIVE_S:g}s", "--body-timeout", "2s")


def url_of(bridge: Process) -> str:
    """Return where it is."""
    return bridge.endpoints["http"]


def ran(*words: str) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("java") is None, reason="no JDK")
def test_java_s_own_client_asks_for_http_2_and_is_answered(bridge: Process, tmp_path: Path) -> None:
    """With a body of known length and with chunks, several on one connection."""
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    said = ran("java", "-XX:TieredStopAtLevel=1", str(source), url_of(bridge), CHAT).splitlines()

    assert [line.split(" ")[:2] for line in said] == [["200", "HTTP_1_1"]] * 3 + [["200"]]
    assert all("chat.completion" in line for line in said[:3])


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize(
    "words", [["--http2"], ["--http1.0"], ["-H", "expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"]]
)
@pytest.mark.parametrize("stream", [False, True])
def test_curl_is_answered_in_each_of_its_ways(bridge: Process, words: list[str], *, stream: bool) -> None:
    """Whole and streamed."""
    body = json.dumps({**json.loads(CHAT), "stream": stream})
    said = ran("curl", "-sSN", *words, "-d", body, f"{url_of(bridge)}/v1/chat/completions")

    assert said.endswith("data: [DONE]\n\n") if stream else json.loads(said)["object"] == "chat.completion"


def asks(bridge: Process, *, stream: bool) -> dict[str, bytes]:
    """Write the same request for each endpoint; streams are asked for in two ways."""
    plain = {"max_tokens": 12, **({"stream": True} if stream else {})}
    bodies: dict[str, dict[str, Any]] = {
        "/infer": {"prompt": "hi", "max_tokens": 12},
        "/v1/chat/completions": {**json.loads(CHAT), **plain},
        "/v1/completions": {"model": "mock", "prompt": "hi", **plain},
    }
    accept = "accept: text/event-stream\r\n" if stream else ""
    raw = {path: json.dumps(body).encode() for path, body in bodies.items()}
    return {
        path: f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{accept}content-length: {len(one)}\r\n\r\n".encode() + one
        for path, one in raw.items()
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/completions"])
def test_a_half_closed_sender_is_answered_everywhere(bridge: Process, path: str, *, stream: bool) -> None:
    """At once after the request, or in the middle of the stream."""
    raw = asks(bridge, stream=stream)[path]
    for late in (False, True):
        with connect(address_of(bridge)) as caller:
            caller.sendall(raw)
            said = read_until(caller, b"data: ") if late and stream else b""
            caller.shutdown(socket.SHUT_WR)
            said += read_all(caller)

        assert statuses(said) == [200]
        assert said.endswith(b"\r\n0\r\n\r\n" if stream else b"}")
        assert not stream or said.count(b"data: ") > 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_half", [False, True])
def test_a_sender_who_is_gone_frees_its_slot(fleet: Stack, bridge: Process, *, stream: bool, is_half: bool) -> None:
    """Also if it had ended its sending half before, and died then."""
    body = json.dumps({"prompt": "hi", "max_tokens": 2000}).encode()
    accept = b"accept: text/event-stream\r\n" if stream else b""
    head = b"POST /infer HTTP/1.1\r\nhost: localhost\r\n%scontent-length: %d\r\n\r\n" % (accept, len(body))
    with fleet.client() as client:
        eventually(lambda: client.status().running == 0, what="an idle fleet")
        with connect(address_of(bridge)) as caller:
            caller.sendall(head + body)
            if is_half:
                caller.shutdown(socket.SHUT_WR)
            eventually(lambda: client.status().running == 1, what="a running request")

        assert eventually(lambda: client.status().running == 0, within_s=10, what="a free slot")


def idle(bridge: Process, seconds: float) -> None:
    """Ask twice on one connection that is idle between; one that was cut raises."""
    connection = http.client.HTTPConnection(*address_of(bridge), timeout=20)
    try:
        for pause in (0.0, seconds):
            time.sleep(pause)
            connection.auto_open = not pause  # http.client would connect again in silence
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
    finally:
        connection.close()


def test_a_connection_is_kept_as_long_as_the_setting_says(bridge: Process) -> None:
    """Then it is closed."""
    idle(bridge, KEEP_ALIVE_S / 2)
    with connect(address_of(bridge)) as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        read_until(caller, b'"ok"}')
        idle_since = time.monotonic()
        assert read_all(caller) == b""
    assert time.monotonic() - idle_since > KEEP_ALIVE_S / 2


@pytest.mark.slow
def test_a_connection_of_a_pool_is_kept_by_default(fleet: Stack) -> None:
    """Pools and proxies keep 60 to 90 s."""
    idle(fleet.bridge(), 95.0)
