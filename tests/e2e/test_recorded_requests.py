"""What agent programs and user interfaces really ask, recorded (`support/recorder.py`), and asked again of a bridge."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from support.http import answer_of, asked
from support.stack import Process, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
RECORDED: Final = Path(__file__).with_name("recorded")
LAST: Final = {
    "/v1/chat/completions": "[DONE]",
    "/v1/messages": '"type":"message_stop"',
    "/v1/responses": '"type":"response.completed"',
}
"""What stands in the last event of a stream that did not fail."""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Generator[Process]:
    """A node that says a sentence, and a bridge to it."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps(["It is dry."]))
    with running(worker=("--engine-opt", f"script={script}", "--max-model-len", "65536", "--devices", "0")) as stack:
        yield stack.bridge()


def requests() -> Iterator[Any]:
    """Yield each recorded request, under the name of its program and its place."""
    for file in sorted(RECORDED.glob("*.json")):
        for number, one in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            yield pytest.param(one, id=f"{file.stem}-{number}")


@pytest.mark.parametrize("recorded", list(requests()))
def test_a_recorded_request_is_answered(recorded: dict[str, Any], bridge: Process) -> None:
    """With success, in the shape of its API; or with the refusal that docs/agents.md names."""
    method, path, headers, body = (recorded[name] for name in ("method", "path", "headers", "body"))
    bare = path.partition("?")[0]
    if body is None or not body.get("stream") or recorded["status"] != 200:
        if method == "HEAD":
            with asked(bridge, method, path, None, headers) as answer:
                assert answer.status == recorded["status"]
            return
        status, said, _ = answer_of(bridge, method, path, body, headers)
        assert status == recorded["status"], said
        assert recorded.get("refused", "") in json.dumps(said)
        return
    with asked(bridge, method, path, body, headers) as answer:
        events = answer.read().decode().strip().split("\n\n")

    assert answer.status == 200, events
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert LAST[bare] in events[-1]


def test_every_program_of_the_page_is_recorded_or_said_not_to_be() -> None:
    """docs/agents.md has a block for each recording, and says of every other program why there is none."""
    page = (RECORDED.parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
    blocks = page.split("\n## ")[1:]

    assert len(blocks) > 15
    for file in RECORDED.glob("*.json"):
        assert f"recorded/{file.name}" in page
    for block in blocks:
        assert "recorded/" in block or "not run here" in block or block.startswith("What all"), block[:40]
