"""The same contract over the real thing: bridge, broker and a mock node as processes, HTTP on a socket."""

import http.client
from collections.abc import Iterator
from typing import Any

import pytest

from support.contract import CASES, body_of, check_answer
from support.stack import running

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def connection() -> Iterator[http.client.HTTPConnection]:
    """One connection for all cases: what is wrong with one request must not disturb the next."""
    with running() as stack:
        address = stack.bridge().endpoints["http"].removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=30)
        yield connection
        connection.close()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_v1(case: dict[str, Any], connection: http.client.HTTPConnection) -> None:
    """Status, shape and named field are those of the contract."""
    headers = {"content-type": case.get("content_type", "application/json")}
    connection.request("POST", "/infer", body_of(case), headers)
    answer = connection.getresponse()
    raw = answer.read()

    check_answer(case, answer.status, answer.headers["content-type"], raw)
    assert answer.headers["x-request-id"]
