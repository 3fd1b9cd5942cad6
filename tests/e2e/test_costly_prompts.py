"""Prompts that cost too much, through the public door: each is refused, and its neighbours notice nothing."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.http import answer_of
from support.stack import Stack
from support.tiny import tiny_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
]

TEMPLATE = """{% for m in messages %}
{%- if 'loop' in m.content %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{{- m.role }}: {{ m.content }};{% endfor %}assistant:"""


@pytest.mark.slow
def test_a_template_that_loops_and_a_text_of_megabytes_stop_nobody_else(tmp_path: Path) -> None:
    """The node is heard all the time, a stream goes on, others are answered; two loops in a row pile nothing up."""
    place = tmp_path / "m"
    shutil.copytree(tiny_model(tmp_path), place)
    (place / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    with Stack() as stack:
        stack.broker("--heartbeat-interval", "1", "--node-eviction-timeout", "5")
        stack.worker("--model", str(place), "--device", "cpu", engine="generate")
        bridge = stack.bridge("--request-timeout", "120")

        def post(prompt: str) -> tuple[int, Any]:
            return answer_of(bridge, "POST", "/infer", {"prompt": prompt, "max_tokens": 2})[:2]

        with ThreadPoolExecutor(8) as pool, stack.client(timeout_s=60) as client:
            stream = client.stream("count", max_tokens=1500, ignore_eos=True)
            next(stream)
            bad = [pool.submit(post, "loop") for _ in range(2)]
            big = pool.submit(post, "hello world " * 100_000)
            good = [pool.submit(post, f"hello {number}") for number in range(4)]
            assert [one.result()[0] for one in good] == [200] * 4
            assert [one.result()[0] for one in bad] == [500] * 2
            status, said = big.result()
            assert status == 422
            assert "at least" in said["detail"][0]["msg"]
            stream.close()
        kinds = {event.kind for event in stack.status().events}
        assert not kinds & {"evicted", "left", "restarted"}, kinds
        assert post("hello")[0] == 200
