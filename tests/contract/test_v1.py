"""The locked contract of POST /infer, case by case, through the real application."""

import asyncio
from typing import Any

import pytest

from support.asgi import call
from support.contract import CASES, body_of, check_answer
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_v1(case: dict[str, Any]) -> None:
    """Status, shape and named field are those of the contract."""
    app = make_app(FakeFleet("Hello", " there"), BridgeSettings())
    headers = {"content-type": case.get("content_type", "application/json")}

    reply = asyncio.run(call(app, "POST", "/infer", body=body_of(case), headers=headers))

    check_answer(case, reply.status, reply.headers["content-type"], reply.body)
