"""Pages of other origins in a real browser, against a real bridge: what they may read, and what they may not."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.browser import Page, browsing, needs_browser
from support.stack import Process, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), needs_browser]
KEY = "s3cret"
ASK = """(async () => {
  try {
    const answer = await fetch(%s, %s);
    return {status: answer.status, id: answer.headers.get("x-request-id"), retry: answer.headers.get("retry-after"),
            body: await answer.text()};
  } catch (error) { return {failed: String(error)}; }
})()"""


class _Blank(BaseHTTPRequestHandler):
    """A page of its own origin, with nothing on it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's own
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Generator[int]:
    """A web server: to a browser, its address and its name are two origins."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Generator[Page]:
    """One browser for all tests."""
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def bridges(site: int) -> Generator[tuple[Process, Process]]:
    """A bridge with keys and one without, that let in the pages of one origin, and files."""
    with running(worker=("--engine-opt", "eos=never")) as stack:
        allowed = ("--cors-origin", f"http://127.0.0.1:{site},null")
        yield stack.bridge("--api-keys", f"acme:{KEY}", *allowed), stack.bridge(*allowed)


def fetch(page: Page, bridge: Process, path: str, body: object = None, **headers: str) -> dict[str, Any]:
    """Have the page ask; return what its script sees."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    options = {"headers": sent} if body is None else {"method": "POST", "body": json.dumps(body), "headers": sent}
    url = bridge.endpoints["http"] + path
    seen: dict[str, Any] = page.value(ASK % (json.dumps(url), json.dumps(options)))
    return seen


@pytest.mark.parametrize("number", [0, 1])
def test_an_allowed_page_reads_answers_streams_and_errors(
    page: Page, site: int, bridges: tuple[Process, Process], number: int
) -> None:
    """Preflights pass without a key; what goes wrong is told, with the headers that say when to come back."""
    page.open(f"http://127.0.0.1:{site}/")
    bridge, key = bridges[number], {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    chat = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    model = json.loads(fetch(page, bridge, "/v1/models", **key)["body"])["data"][0]["id"]
    chat["model"] = model

    whole = fetch(page, bridge, "/v1/chat/completions", chat, x_stainless_lang="js", **key)
    stream = fetch(page, bridge, "/v1/chat/completions", {**chat, "stream": True}, **key)
    events = fetch(page, bridge, "/infer", {"prompt": "hi", "max_tokens": 3}, accept="text/event-stream", **key)
    wrong = fetch(page, bridge, "/v1/chat/completions", {**chat, "model": "nobody"}, **key)
    lost = fetch(page, bridge, "/chat/completions", chat, **key)

    assert whole["status"] == 200
    assert whole["id"]
    assert stream["body"].endswith("data: [DONE]\n\n")
    assert "event: done" in events["body"]
    assert (wrong["status"], json.loads(wrong["body"])["error"]["code"]) == (404, "model_not_found")
    assert lost["status"] == 404
    if number == 0:
        keyless = fetch(page, bridge, "/v1/models")
        assert (keyless["status"], json.loads(keyless["body"])["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("number", [0, 1])
def test_another_page_reads_nothing(page: Page, site: int, bridges: tuple[Process, Process], number: int) -> None:
    """Neither with a preflight nor without one; not even what probes may."""
    page.open(f"http://localhost:{site}/")

    for path, headers in (("/v1/models", {"authorization": f"Bearer {KEY}"}), ("/livez", {}), ("/status", {})):
        assert "Failed to fetch" in fetch(page, bridges[number], path, **headers)["failed"]


def test_a_file_is_a_page_too(page: Page, tmp_path: Path, bridges: tuple[Process, Process]) -> None:
    """Its origin is `null`."""
    (tmp_path / "page.html").write_text("<!doctype html>")
    page.open((tmp_path / "page.html").as_uri())

    assert fetch(page, bridges[1], "/v1/models")["status"] == 200
