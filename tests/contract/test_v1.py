"""The locked contract of POST /infer, case by case, through the real application."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from support.asgi import call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("v1_cases.json").read_text(encoding="utf-8"))


def body_of(case: dict[str, Any]) -> bytes:
    """Return the bytes that a case sends."""
    if "raw_hex" in case:
        return bytes.fromhex(case["raw_hex"])
    return case["raw"].encode() if "raw" in case else json.dumps(case["body"]).encode()


def check_answer(case: dict[str, Any], status: int, content_type: str, answer: Any) -> None:
    """Compare an answer with what the case promises."""
    assert status == case["status"], answer
    assert content_type == "application/json; charset=utf-8"
    if status == 200:
        assert answer.keys() == {"api_version", "text", "request_id"}
        assert answer["api_version"] == "v1"
        assert isinstance(answer["text"], str)
    if status == 422:
        assert answer.keys() == {"detail", "request_id"}
        assert [entry.keys() for entry in answer["detail"]] == [{"loc", "msg", "type"}]
        assert answer["detail"][0]["loc"] == ["body", *([case["field"]] if "field" in case else [])]
    assert answer["request_id"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_v1(case: dict[str, Any]) -> None:
    """Status, shape and named field are those of the contract."""
    app = make_app(FakeFleet("Hello", " there"), BridgeSettings())
    headers = {"content-type": case.get("content_type", "application/json")}

    reply = asyncio.run(call(app, "POST", "/infer", body=body_of(case), headers=headers))

    check_answer(case, reply.status, reply.headers["content-type"], reply.json)
