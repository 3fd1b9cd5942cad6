"""GET /metrics after some load: every name that the documentation has, read by Prometheus' own parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from support.http import EVENTS, address_of, answer_of, asked, calling
from support.served import say, statuses
from support.stack import Process, Stack, eventually, running

pytestmark = pytest.mark.e2e
DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
NAMES = dict(re.findall(r"^\| `(zmqrt_\w+)` \| (\w+) \|", DOCS, re.MULTILINE))


def scrape(bridge: Process) -> dict[str, Metric]:
    """Read all families by name; counters as they are written, with _total."""
    with asked(bridge, "GET", "/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    return {one.name + ("_total" if one.type == "counter" else ""): one for one in families}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    """Return one sample; a histogram's count."""
    family = found[name]
    wanted = f"{name}_count" if family.type == "histogram" else name
    (sample,) = [one for one in family.samples if one.name == wanted and labels.items() <= one.labels.items()]
    return sample.value


def test_every_documented_name_is_there_after_a_load_and_no_other() -> None:
    """With the kind that the page says, and with numbers that are right."""
    with running(worker=("--engine-opt", "step_ms=5,eos=never", "--devices", "0")) as stack:
        bridge = stack.bridge()
        ask = {"prompt": "hi", "max_tokens": 7}
        assert answer_of(bridge, "POST", "/infer", ask)[0] == 200
        with asked(bridge, "POST", "/infer", ask, EVENTS) as answer:
            answer.read()
        assert answer_of(bridge, "POST", "/infer", {"prompt": 5})[0] == 422
        assert answer_of(bridge, "GET", "/a/path/of/my/own")[0] == 404
        assert statuses(say(address_of(bridge), b"GET / HTTP/9.9\r\n\r\n")) == [505]
        with calling(bridge, "/infer", b'{"prompt": "hi", "max_tokens": 5000}'):
            eventually(
                lambda: any(request.units > 7 for request in stack.status().requests),  # not one that was before it
                what="a request that decodes",
            )
        eventually(lambda: stack.status().running == 0, what="a free slot")
        found = eventually(lambda: _settled(bridge), what="heartbeats with the numbers")

        told = {name: family.type for name, family in found.items()}
        assert {name: kind for name, kind in told.items() if name.startswith("zmqrt_")} == NAMES
        assert all(name.startswith("zmqrt_") for name in told)
        assert value(found, "zmqrt_generation_tokens_total", model="mock") == 14
        assert value(found, "zmqrt_request_success_total", model="mock", finish_reason="length") == 2
        assert value(found, "zmqrt_e2e_request_latency_seconds", model="mock") == 2
        assert value(found, "zmqrt_request_queue_time_seconds", model="mock") == 2
        assert value(found, "zmqrt_time_to_first_token_seconds", model="mock") == 3
        assert value(found, "zmqrt_http_time_to_first_token_seconds", model="mock") == 1
        assert value(found, "zmqrt_cancel_latency_seconds", node="node-0", device="mock:0") == 1
        assert value(found, "zmqrt_http_requests_total", path="/infer", method="POST", status="422") == 1
        assert value(found, "zmqrt_http_requests_total", path="other", method="GET", status="404") == 1
        assert value(found, "zmqrt_http_refused_total", status="505") == 1
        assert value(found, "zmqrt_http_callers_left_total", stage="waiting") == 1
        assert value(found, "zmqrt_cancellations_total", stage="decode") == 1
        assert value(found, "zmqrt_worker_up", node="node-0") == 1


def _settled(bridge: Process) -> dict[str, Metric] | None:
    found, place = scrape(bridge), {"node": "node-0", "device": "mock:0"}
    is_told = value(found, "zmqrt_engine_tokens_total", **place) >= 14
    return found if is_told and value(found, "zmqrt_cancel_latency_seconds", **place) else None


def test_without_a_broker_there_are_no_stale_numbers() -> None:
    """Only that it does not answer, and what the bridge has counted itself."""
    with Stack() as stack:
        broker = stack.broker()
        bridge = stack.bridge()
        assert value(scrape(bridge), "zmqrt_broker_up") == 1

        broker.kill()
        found = eventually(lambda: _down(bridge), what="the broker's absence")

        assert "zmqrt_rejections_total" not in found
        assert value(found, "zmqrt_http_requests_total", path="/metrics", status="200") >= 1


def _down(bridge: Process) -> dict[str, Metric] | None:
    found = scrape(bridge)
    return found if value(found, "zmqrt_broker_up") == 0 else None


def test_a_node_that_was_started_again_is_there_once() -> None:
    """While the broker still lists the one before it: a series that comes twice would spoil the whole page."""
    with running() as stack:
        bridge = stack.bridge()
        node = stack.node("node-0")
        node.kill()
        stack.again(node)
        found = eventually(lambda: _up(bridge), what="the node")

        for family in found.values():
            series = [(one.name, tuple(sorted(one.labels.items()))) for one in family.samples]
            assert len(series) == len(set(series)), family.name


def _up(bridge: Process) -> dict[str, Metric] | None:
    """Look whether the one name stands for one node that is up: for a moment both may be there, told apart by uuid."""
    found = scrape(bridge)
    up = [sample.value for sample in found["zmqrt_worker_up"].samples if sample.labels["node"] == "node-0"]
    return found if up == [1] else None


def test_a_scrape_needs_a_key_where_there_are_keys() -> None:
    """As a bearer token, which Prometheus can send."""
    with Stack() as stack:
        stack.broker()
        bridge = stack.bridge("--api-keys", "ops:s3cret")

        assert answer_of(bridge, "GET", "/metrics")[0] == 401
        with asked(bridge, "GET", "/metrics", headers={"authorization": "Bearer s3cret"}) as answer:
            assert answer.status == 200
