"""One request through bridge, broker and node as one OpenTelemetry trace, in an exporter that keeps it in memory.

The bridge's app runs in this process, where the exporter is; broker and node are processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Generator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from support.asgi import call
from support.cli import zmqrt
from support.stack import Stack, eventually, running
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.client import AsyncClient, RequestError, ZmqrtError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PACE = ("--engine-opt", "step_ms=10,eos=never")
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
_exporter = InMemorySpanExporter()


@pytest.fixture
def exporter() -> Generator[InMemorySpanExporter]:
    """Spans as they end. OpenTelemetry takes one provider for each process and no other later."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(_exporter))
        trace.set_tracer_provider(provider)
    _exporter.clear()
    yield _exporter
    _exporter.clear()


def ask(stack: Stack, body: dict[str, object], *, stream: bool = False) -> tuple[int, dict[str, str]]:
    """Ask through a bridge with tracing, as a caller who traces does."""

    async def run() -> tuple[int, dict[str, str]]:
        settings = BridgeSettings(traces="otlp", request_timeout_s=30.0)
        async with AsyncClient(stack.clients, name="bridge") as client:
            headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "content-type": "application/json"}
            if stream:
                headers["accept"] = "text/event-stream"
            app, raw = make_app(client, settings), json.dumps(body).encode()
            reply = await call(app, "POST", "/infer", body=raw, headers=headers)
            return int(reply.status), reply.headers

    return asyncio.run(run())


def by_name(spans: Sequence[ReadableSpan]) -> dict[str, ReadableSpan]:
    """Return spans by name; each name once."""
    named = {span.name: span for span in spans}
    assert len(named) == len(spans)
    return named


def parent_of(span: ReadableSpan) -> int | None:
    """Return the id of its parent."""
    return int(span.parent.span_id) if span.parent is not None else None


def id_of(span: ReadableSpan) -> int:
    """Return its own id."""
    assert span.context is not None
    return int(span.context.span_id)


@pytest.mark.parametrize("stream", [False, True])
def test_one_request_is_one_trace(exporter: InMemorySpanExporter, *, stream: bool) -> None:
    """Caller, bridge, client, and within it queue, dispatch, prefill, decode; parents right, times in order."""
    with running(worker=PACE) as stack:
        status, headers = ask(stack, {"prompt": "hi", "max_tokens": 60}, stream=stream)
        spans = by_name(exporter.get_finished_spans())

    assert status == 200
    server, client = spans.pop("POST /infer"), spans.pop("chat")
    assert sorted(spans) == ["zmqrt.decode", "zmqrt.dispatch", "zmqrt.prefill", "zmqrt.queue"]
    for span in (server, client, *spans.values()):
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert parent_of(server) == int(CALLER, 16)
    assert parent_of(client) == id_of(server)
    assert {parent_of(span) for span in spans.values()} == {id_of(client)}
    assert headers["traceresponse"] == f"00-{TRACE_ID}-{id_of(server):016x}-01"
    assert (server.kind, client.kind) == (SpanKind.SERVER, SpanKind.CLIENT)

    order = [spans[f"zmqrt.{stage}"] for stage in ("queue", "dispatch", "prefill", "decode")]
    times = [(span.start_time or 0, span.end_time or 0) for span in (client, *order)]
    (began, ended), *stages = times
    assert began <= stages[0][0]
    assert stages[-1][1] <= ended
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(stages))
    decode_ns = stages[-1][1] - stages[-1][0]
    assert decode_ns > (ended - began) / 2
    attributes = dict(spans["zmqrt.decode"].attributes or {})
    assert attributes["zmqrt.node"] == "node-0"
    assert str(attributes["zmqrt.device"]).startswith("mock:")
    assert dict(client.attributes or {})["gen_ai.usage.output_tokens"] == 60
    assert dict(server.attributes or {})["http.response.status_code"] == 200


def test_a_request_that_outlived_its_node_shows_what_was_lost(exporter: InMemorySpanExporter) -> None:
    """As a stage of its own, and as the number of attempts."""

    async def run(stack: Stack) -> None:
        async with AsyncClient(stack.clients) as client:
            handle = client.submit("hi", max_tokens=100, stream=True)
            await handle.next_chunk()
            (story,) = await client.explain(handle.rid.hex())
            await asyncio.to_thread(stack.node(story.attempts[0].node).kill)
            await handle.result()

    with running(nodes=2, worker=PACE) as stack:
        asyncio.run(run(stack))
        spans = by_name(exporter.get_finished_spans())

    assert "zmqrt.lost" in spans
    assert dict(spans["zmqrt.decode"].attributes or {})["zmqrt.attempts"] == 2


def test_failures_and_callers_who_leave_end_their_spans(exporter: InMemorySpanExporter) -> None:
    """An error is one, with its reason; a cancelled request is none."""

    async def run(stack: Stack) -> None:
        async with AsyncClient(stack.clients) as client:
            with contextlib.suppress(RequestError):
                await client.infer("hi", model="nobody-has-it", timeout_s=2.0)
            handle = client.submit("hi", max_tokens=1000, stream=True)
            await handle.next_chunk()
            handle.cancel()

    with running(worker=PACE) as stack:
        asyncio.run(run(stack))
        failed, left = exporter.get_finished_spans()

    assert failed.status.status_code is StatusCode.ERROR
    assert dict(failed.attributes or {})["error.type"] == "model_not_found"
    assert left.status.status_code is StatusCode.UNSET
    assert dict(left.attributes or {})["zmqrt.cancelled"] is True


def test_a_span_ends_with_its_answer_whoever_reads_it(exporter: InMemorySpanExporter) -> None:
    """Not when it is read, if it ever is; and a request that could not begin is a failure."""

    def finished_with_chat() -> Sequence[ReadableSpan] | None:
        spans = exporter.get_finished_spans()
        return spans if "chat" in {span.name for span in spans} else None

    with running(worker=PACE) as stack:
        client = stack.client()
        began = time.monotonic()
        handle = client.submit("hi", max_tokens=5)
        stages = eventually(finished_with_chat, what="the end of the span")  # its stages end before it
        took_s = time.monotonic() - began
        client.submit("hi", max_tokens=5)  # nobody keeps the handle
        eventually(lambda: len(exporter.get_finished_spans()) > len(stages), what="its end, too")
        client.close()
        exporter.clear()
        with contextlib.suppress(ZmqrtError):
            client.submit("hi")

    assert handle.request_id
    whole = by_name(stages)["chat"]
    assert (whole.end_time or 0) - (whole.start_time or 0) < took_s * 1e9
    assert len(exporter.get_finished_spans()) == 1


def test_a_trace_context_that_cannot_be_read_begins_a_new_trace(exporter: InMemorySpanExporter) -> None:
    """As W3C has it; the request does not suffer."""
    unreadable = ("", "nonsense", "00-zz-yy-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "0" * 300)

    async def run(stack: Stack) -> list[int]:
        async with AsyncClient(stack.clients) as client:
            app = make_app(client, BridgeSettings(traces="otlp"))
            body = json.dumps({"prompt": "hi", "max_tokens": 2}).encode()
            replies = [await call(app, "POST", "/infer", body=body, headers={"traceparent": one}) for one in unreadable]
            return [int(reply.status) for reply in replies]

    with running(worker=PACE) as stack:
        assert asyncio.run(run(stack)) == [200] * len(unreadable)
    servers = [span for span in exporter.get_finished_spans() if span.name == "POST /infer"]
    assert len(servers) == len(unreadable)
    assert all(span.parent is None for span in servers)


def test_whoever_does_not_trace_pays_nothing() -> None:
    """OpenTelemetry is not even imported, by the library or by the bridge."""
    code = """
import sys
from zmqrt.client import Client
import zmqrt.client.tracing, zmqrt.bridge_http.app
with Client(sys.argv[1]) as client:
    client.infer("hi", max_tokens=2)
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    with running(worker=PACE) as stack:
        ran = subprocess.run(
            [sys.executable, "-c", code, stack.clients], capture_output=True, text=True, timeout=60, check=True
        )

    assert ran.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_bridge_prints_or_sends_its_spans() -> None:
    """`--traces console` writes them to standard output; otlp to a collector that may be absent; both serve."""
    with running(worker=PACE) as stack:
        console = stack.bridge("--traces", "console")
        absent = stack.bridge("--traces", "otlp")
        for bridge in (console, absent):
            done = zmqrt("submit", "--url", bridge.endpoints["http"], "--prompt", "hi")
            assert done.returncode == 0, done.stderr

        printed = eventually(lambda: "\n".join(console.lines) if "zmqrt.decode" in "\n".join(console.lines) else None)
    assert "POST /infer" in printed
