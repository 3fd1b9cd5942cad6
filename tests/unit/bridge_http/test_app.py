"""The routes: what is handed to the fleet, what comes back, and what a caller's leaving does."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from support.asgi import call, exchange, infer
from support.fake_fleet import FakeFleet
from support.snapshots import EMPTY
from zmqrt.bridge_http import sse
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.errors import ConnectError, ErrorKind, request_error
from zmqrt.protocol.tasks import Generate

SETTINGS = BridgeSettings(default_model="tiny", request_timeout_s=12.0, body_limit_bytes=1000)
ASK = {"prompt": "Hi", "max_tokens": 3}
STREAM = {"accept": "text/event-stream"}
BODY = json.dumps(ASK).encode()


def test_a_request_reaches_the_fleet_as_a_task() -> None:
    """With the caller's trace and the bridge's own limits; a busy fleet is the caller's to ask again."""
    fleet = FakeFleet("Hel", "lo")
    reply = infer(make_app(fleet, SETTINGS), ASK, x_request_id="r1", traceparent="00-ab-cd-01")
    task, is_stream, options = fleet.asked[0]

    assert reply.json == {"api_version": "v1", "text": "Hello", "request_id": "r1"}
    assert (task, is_stream) == (Generate(prompt="Hi", max_tokens=3, temperature=0.7), False)
    assert {name: value for name, value in options.items() if name != "rid"} == {
        "model": "tiny",
        "timeout_s": 12.0,
        "total_s": 12.0,  # by the contract
        "request_id": "r1",
        "traceparent": "00-ab-cd-01",
        "retries": 0,
    }


@pytest.mark.parametrize("where", ["refuse", "error"])
def test_a_failure_becomes_its_answer(where: str) -> None:
    """Whether the library refuses at once or the fleet later."""
    failure = request_error(ErrorKind.QUEUE_FULL, "the queue of tiny is full", retry_after_s=4.0)
    fleet = FakeFleet(refuse=failure) if where == "refuse" else FakeFleet(error=failure)
    reply = infer(make_app(fleet, SETTINGS), ASK)

    assert reply.status == 429
    assert reply.headers["retry-after"] == "4"
    assert reply.json["detail"] == "the queue of tiny is full"


def test_a_fault_in_the_bridge_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With the request's id, so that the caller's report leads to the traceback; strangers are told nothing."""
    reply = infer(make_app(FakeFleet(error=KeyError("oops")), SETTINGS), ASK, x_request_id="r7")

    assert reply.status == 500
    assert b"oops" not in reply.body
    assert "oops" in caplog.text
    assert caplog.records[-1].__dict__["request_id"] == "r7"


@pytest.mark.parametrize("promised", ["1001", "9" * 400, None])
def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_so(promised: str | None) -> None:
    """Counted while it comes: a promise of length may be absent. The answer names the limit and what moves it."""
    fleet = FakeFleet("ok")
    headers = {"content-length": promised} if promised else {}
    pieces = [b"x" * 600, b"x" * 401]
    reply = asyncio.run(call(make_app(fleet, SETTINGS), "POST", "/infer", body=pieces, headers=headers))

    assert reply.status == 413
    assert "1000 bytes" in reply.json["detail"]
    assert "--body-limit" in reply.json["detail"]
    assert fleet.asked == []


@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "GZip, identity"])
def test_a_compressed_body_is_415_and_says_what_is_understood(path: str, coding: str) -> None:
    """Not "no UTF-8", which sends its sender to look in the wrong place."""
    headers = {"content-encoding": coding}
    reply = asyncio.run(call(make_app(FakeFleet("ok"), SETTINGS), "POST", path, body=[b"\x1f\x8b"], headers=headers))

    assert reply.status == 415
    assert reply.headers["accept-encoding"] == "identity"
    assert "content-encoding" in reply.body.decode()


def test_a_body_may_come_in_pieces() -> None:
    """As long as it stays under the limit."""
    pieces = [BODY[:5], b"", BODY[5:]]
    reply = asyncio.run(call(make_app(FakeFleet("ok"), SETTINGS), "POST", "/infer", body=pieces))

    assert reply.status == 200


@pytest.mark.parametrize(("headers", "pieces"), [({}, ("never",)), (STREAM, ("one",)), (STREAM, ())])
def test_a_caller_who_leaves_cancels_the_work(headers: dict[str, str], pieces: tuple[str, ...]) -> None:
    """At once, whole or streamed, not at the next token: the bridge watches for itself. No head went out: 499."""

    async def scenario() -> tuple[FakeFleet, str]:
        fleet = FakeFleet(*pieces)
        fleet.gate.clear()
        app = make_app(fleet, SETTINGS)
        exchanged = exchange(app, "POST", "/infer", body=BODY, headers=headers).start()
        await fleet.was_asked.wait()
        if headers and pieces:
            await exchanged.until(b"one")
        exchanged.leave()
        await exchanged.finish()
        return fleet, (await call(app, "GET", "/metrics")).body.decode()

    fleet, counted = asyncio.run(scenario())
    status = 200 if headers and pieces else 499

    assert fleet.handles[0].was_cancelled
    assert f'zmqrt_http_requests_total{{method="POST",path="/infer",status="{status}"}} 1.0' in counted
    assert 'status="0"' not in counted


def test_a_caller_who_leaves_while_sending_asks_for_nothing() -> None:
    """The body never ended."""

    async def scenario() -> FakeFleet:
        fleet = FakeFleet("never")
        exchanged = exchange(make_app(fleet, SETTINGS), "POST", "/infer", body=[])
        exchanged.leave()
        await exchanged.start().finish()
        return fleet

    assert asyncio.run(scenario()).asked == []


def test_a_stream_is_tokens_and_then_the_v1_response() -> None:
    """Ids count the tokens delivered; text that is held back makes no event."""
    reply = infer(make_app(FakeFleet("Hel", "", "lo"), SETTINGS), ASK, accept="text/event-stream", x_request_id="r1")

    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.body.decode().split("\n\n") == [
        'id: r1/1\nevent: token\ndata: {"text":"Hel"}',
        'id: r1/3\nevent: token\ndata: {"text":"lo"}',
        'id: r1/3\nevent: done\ndata: {"api_version":"v1","text":"Hello","request_id":"r1"}',
        "",
    ]
    assert reply.is_complete


@pytest.mark.parametrize(
    ("last", "key"), [("r/3", {}), *((last, {"idempotency_key": "k"}) for last in ("three", "r/-1"))]
)
def test_an_event_id_that_says_nothing_is_refused(last: str, key: dict[str, str]) -> None:
    """With the header named, before anything runs."""
    fleet = FakeFleet("ok")
    reply = infer(make_app(fleet, SETTINGS), ASK, accept="text/event-stream", last_event_id=last, **key)

    assert (reply.status, reply.json["reason"], fleet.asked) == (400, "bad_header", [])
    assert "last-event-id" in reply.json["detail"]


def test_a_stream_that_fails_before_its_first_event_has_a_status() -> None:
    """So that a client may retry it as any other request."""
    fleet = FakeFleet(error=request_error(ErrorKind.NO_WORKER, "no node serves tiny", retry_after_s=2.0))
    reply = infer(make_app(fleet, SETTINGS), ASK, accept="text/event-stream")

    assert reply.status == 503
    assert reply.headers["retry-after"] == "2"
    assert reply.headers["content-type"] == "application/json; charset=utf-8"


def test_a_stream_that_fails_later_ends_with_an_error_event() -> None:
    """Its status has gone out; the delivered text stays."""
    fleet = FakeFleet("Hel", error=request_error(ErrorKind.WORKER_LOST, "the node was lost"))
    reply = infer(make_app(fleet, SETTINGS), ASK, accept="text/event-stream", x_request_id="r1")

    assert reply.status == 200
    assert reply.body.decode().split("\n\n")[1] == (
        'event: error\ndata: {"detail":"the node was lost","reason":"worker_lost","request_id":"r1"}'
    )
    assert reply.is_complete


def test_an_idle_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies cut what is silent for long. One clock rings all, each when it has been silent for so long."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)
    keep_alives = sse.KeepAlives()

    def stream(gate: asyncio.Event) -> sse.EventStream:
        async def slow() -> sse.Events:
            await gate.wait()
            yield b"event"

        return sse.EventStream(
            slow(), close=lambda: None, idle=lambda: b": idle\n", failure=lambda _: b"", keep_alives=keep_alives
        )

    async def scenario() -> list[bytes]:
        gate = asyncio.Event()
        sent = [exchange(stream(gate), "POST", "/").start() for _ in range(3)]
        for one in sent:
            await one.until_lines(2)
        gate.set()
        return [(await one.finish()).body for one in sent]

    for body in asyncio.run(scenario()):
        assert body.startswith(b": idle\n: idle\n")
        assert body.endswith(b"event")


def test_who_is_not_let_in_is_counted_apart() -> None:
    """Refusals take microseconds: among the answers of a route they would hide how long those take."""

    async def scenario() -> str:
        app = make_app(FakeFleet("Hi"), BridgeSettings(api_keys=("me:secret",)))
        assert (await call(app, "POST", "/infer", body=BODY)).status == 401
        assert (await call(app, "POST", "/infer", body=BODY, headers={"x-api-key": "secret"})).status == 200
        return (await call(app, "GET", "/metrics", headers={"x-api-key": "secret"})).body.decode()

    counted = asyncio.run(scenario())
    assert 'zmqrt_http_requests_total{method="POST",path="other",status="401"} 1.0' in counted
    assert 'zmqrt_http_request_duration_seconds_count{method="POST",path="/infer"} 1.0' in counted


def test_streams_that_began_at_different_moments_share_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes off once for each that is to be rung, however many there are."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)

    class Counting(sse.KeepAlives):
        calls = 0

        def _ring(self) -> None:
            self.calls += 1
            super()._ring()

    class Silent(sse.EventStream):
        rung = 0

        def ring(self) -> None:
            self.rung += 1
            if self.rung == 12:
                enough.release()

    async def nothing() -> sse.Events:
        yield b""

    async def scenario() -> tuple[int, int]:
        clock = Counting()
        streams = [
            Silent(nothing(), close=lambda: None, idle=bytes, failure=lambda _: b"", keep_alives=clock)
            for _ in "123456"
        ]
        for stream in streams:
            clock.add(stream)
            await asyncio.sleep(0.003)
        for _ in streams:
            await enough.acquire()
        for stream in streams:
            clock.remove(stream)
        return clock.calls, sum(stream.rung for stream in streams)

    enough = asyncio.Semaphore(0)
    calls, rung = asyncio.run(scenario())
    assert calls <= 2 * rung


def idle(path: str, body: object, *pieces: str, monkeypatch: pytest.MonkeyPatch, **headers: str) -> list[str]:
    """Read a stream that has nothing to tell for a while, and then pieces; return its lines, empty ones too."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)

    async def scenario() -> bytes:
        fleet = FakeFleet(*pieces)
        fleet.gate.clear()
        sent = exchange(make_app(fleet, SETTINGS), "POST", path, body=json.dumps(body).encode(), headers=headers)
        sent.start()
        await sent.until_lines(6)
        fleet.gate.set()
        return (await sent.finish()).body

    return asyncio.run(scenario()).decode().split("\n")


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def added(choice: dict[str, Any]) -> str:
    """Return the text of a choice in a chunk of either kind."""
    return str(choice["text"] if "text" in choice else choice["delta"].get("content", ""))


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "tiny", "prompt": "Hi", "stream": True})],
)
@pytest.mark.parametrize("pieces", [(), ("one",)])
def test_an_idle_stream_sends_chunks_that_add_nothing(
    path: str, body: object, pieces: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block has its data, which many a reader takes for granted, and who speaks is said once."""
    blocks = "\n".join(idle(path, body, *pieces, monkeypatch=monkeypatch)).removesuffix("\n\n").split("\n\n")
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]

    assert all(block.startswith("data: ") for block in blocks)
    assert blocks[-1] == "data: [DONE]"
    assert len(chunks) >= 3
    assert "".join(added(chunk["choices"][0]) for chunk in chunks) == "".join(pieces)
    assert {chunk["object"] for chunk in chunks} == {chunks[0]["object"]}
    roles = [chunk["choices"][0].get("delta", {}).get("role") for chunk in chunks]
    assert roles[0] == ("assistant" if "chat" in path else None)
    assert not any(roles[1:])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


@pytest.mark.parametrize("pieces", [(), ("one",)])
def test_an_idle_stream_of_infer_has_no_block_without_data(
    pieces: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract has no event for it: comments belong to the event that comes next."""
    lines = idle("/infer", ASK, *pieces, monkeypatch=monkeypatch, **STREAM)
    blocks = "\n".join(lines).removesuffix("\n\n").split("\n\n")

    assert lines.count(": still here") >= 2
    assert all("\ndata: " in block for block in blocks)
    assert [line for block in blocks for line in block.split("\n") if line.startswith("event: ")] == [
        *("event: token" for _ in pieces),
        "event: done",
    ]


def test_health_is_asked_once_for_many_probes() -> None:
    """A snapshot of a large fleet is not free."""
    fleet = FakeFleet()

    async def scenario() -> list[int]:
        app = make_app(fleet, SETTINGS)
        return [(await call(app, "GET", path)).status for path in ("/health", "/readyz", "/health", "/livez")]

    assert asyncio.run(scenario()) == [200, 200, 200, 200]
    assert fleet.status_calls == 1


def test_without_a_broker_the_bridge_lives_but_is_not_ready() -> None:
    """And says why."""
    fleet = FakeFleet(snapshot=ConnectError("nobody listens at tcp://127.0.0.1:7555; start zmqrt-broker"))
    app = make_app(fleet, SETTINGS)
    reply = asyncio.run(call(app, "GET", "/readyz"))

    assert reply.status == 503
    assert reply.json["status"] == "broker_unreachable"
    assert "start zmqrt-broker" in reply.json["detail"]
    assert asyncio.run(call(app, "GET", "/livez")).status == 200


def test_an_empty_fleet_is_not_ready() -> None:
    """A broker without nodes serves nobody."""
    empty = msgspec.structs.replace(EMPTY, ready=False)
    reply = asyncio.run(call(make_app(FakeFleet(snapshot=empty), SETTINGS), "GET", "/health"))

    assert reply.status == 503
    assert reply.json["status"] == "no_nodes"
    assert reply.headers["retry-after"] == "1"


def test_who_scrapes_is_not_in_flight_itself() -> None:
    """An idle bridge has none; one that works has what it works for."""

    async def scenario() -> tuple[str, str]:
        fleet = FakeFleet("later")
        fleet.gate.clear()
        app = make_app(fleet, SETTINGS)
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
