"""A model whose prompt begins its thoughts loses its node within them: at another bridge they are thoughts still."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.http import EVENTS, Event, answer_of, asked, events_of
from support.stack import Process, Stack, eventually
from support.tiny import tiny_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ think or '' }}"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "chat_template_kwargs": {"think": "<think>\n"},
    "max_tokens": 600,
    "ignore_eos": True,
    "seed": 5,
}


def read(bridge: Process, last_id: str = "", events: int = 10**6) -> list[Event]:
    """Read so many events of the stream, or all."""
    headers = {**EVENTS, "idempotency-key": "thoughts", **({"last-event-id": last_id} if last_id else {})}
    found = list[Event]()
    with asked(bridge, "POST", CHAT, {**BODY, "stream": True}, headers) as answer:
        assert answer.status == 200, answer.read()
        for event in events_of(answer):
            found.append(event)
            if len(found) == events or event.data["choices"][0]["finish_reason"] is not None:
                break
    return found


def test_thoughts_that_the_prompt_began_go_on_as_thoughts(tmp_path: Path) -> None:
    """Together what the undisturbed answer thinks, and nothing of it is said; all of its tokens are thoughts."""
    place = tmp_path / "m"
    shutil.copytree(tiny_model(tmp_path), place)
    (place / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    with Stack() as stack:
        stack.broker()
        for number in range(2):
            words = ("--model", str(place), "--served-model-name", "m", "--device", "cpu")
            stack.worker(*words, engine="generate", node_id=f"node-{number}", wait=False)
        stack.wait_for_nodes(2, within_s=300)
        one, other = stack.bridge(), stack.bridge()
        whole = answer_of(one, "POST", CHAT, BODY)[1]
        plain = answer_of(one, "POST", CHAT, {**BODY, "max_tokens": 9, "chat_template_kwargs": {}})[1]["choices"][0][
            "message"
        ]
        first = read(one, events=6)
        serving = eventually(lambda: [node.node_id for node in stack.status().nodes if node.in_flight])
        stack.node(serving[0]).kill()
        rest = read(other, next(event.id for event in reversed(first) if event.id))

    message = whole["choices"][0]["message"]
    deltas = [event.data["choices"][0]["delta"] for event in first + rest]
    assert (message["content"], whole["usage"]["completion_tokens"]) == ("", 600)
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 600}
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == message["reasoning_content"]
    assert not any(delta.get("content") for delta in deltas)
    assert "reasoning_content" not in plain
