"""What is counted of requests that end otherwise than with an answer."""

import asyncio
import json

from support.asgi import call, exchange
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings

BODY = json.dumps({"prompt": "Hi", "max_tokens": 3}).encode()


def test_a_stream_left_before_its_head_counts_as_499() -> None:
    """As a whole answer that nobody waited for; 0 is no status."""

    async def scenario() -> str:
        fleet = FakeFleet("never")
        fleet.gate.clear()
        app = make_app(fleet, BridgeSettings())
        fleet.pieces = ()
        for headers in ({"accept": "text/event-stream"}, {}):
            fleet.was_asked.clear()
            exchanged = exchange(app, "POST", "/infer", body=BODY, headers=headers).start()
            await fleet.was_asked.wait()
            exchanged.leave()
            await exchanged.finish()
        return (await call(app, "GET", "/metrics")).body.decode()

    text = asyncio.run(scenario())

    assert 'zmqrt_http_requests_total{method="POST",path="/infer",status="499"} 2.0' in text
    assert 'status="0"' not in text


def test_who_scrapes_is_not_in_flight_itself() -> None:
    """An idle bridge has none; one that works has what it works for."""

    async def scenario() -> tuple[str, str]:
        fleet = FakeFleet("later")
        fleet.gate.clear()
        app = make_app(fleet, BridgeSettings())
        idle = await call(app, "GET", "/metrics")
        exchanged = exchange(app, "POST", "/infer", body=BODY).start()
        await fleet.was_asked.wait()
        busy = await call(app, "GET", "/metrics")
        fleet.gate.set()
        await exchanged.finish()
        return idle.body.decode(), busy.body.decode()

    idle, busy = asyncio.run(scenario())

    assert "zmqrt_http_requests_in_flight 0.0" in idle
    assert "zmqrt_http_requests_in_flight 1.0" in busy
