"""Makes OpenTelemetry spans: one for each request, and within it one for each stage.

An application that uses OpenTelemetry has imported it; then, and only then, spans are made, through the API alone and
with whatever exporter the application has set up. Broker and node make none of their own, so that their loops do
nothing but serve: they tell with the answer how long each stage took, and the spans are made from that, here, on one
clock. The names of attributes are those of OpenTelemetry's conventions for generative models.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..protocol import messages as m
from ..protocol.errors import CancelledError, RequestError, ZmqrtError
from .calls import Call
from .requests import Sink
from .response import Event

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

STAGES: Final = ("queue", "lost", "dispatch", "prefill", "decode")
"""In the order in which they are drawn; `lost` only where an attempt was lost with its node."""
_NS: Final = 1000
_OPERATIONS: Final = {"generate": "chat", "embed": "embeddings", "rerank": "rerank", "classify": "classify"}
_FACTS: Final = {"node": "zmqrt.node", "device": "zmqrt.device", "batch": "zmqrt.batch", "attempts": "zmqrt.attempts"}


def begin(call: Call, sink: Sink) -> tuple[Call, Sink]:
    """Start the span of a request, if anybody traces: the call then carries it on, and the sink sees how it ends."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return call, sink
    given = call.ext.get("traceparent")
    span = api.get_tracer("zmqrt").start_span(
        f"{_OPERATIONS[call.task]} {call.service}".rstrip(),
        context=context_of(given) if isinstance(given, str) else None,
        kind=api.SpanKind.CLIENT,
        attributes=_asked(call),
    )
    if not span.is_recording():
        return call, sink
    ext = {**call.ext, "traceparent": traceparent_of(span)}
    return msgspec.structs.replace(call, ext=ext), TracedSink(sink, Trace(span))


def context_of(traceparent: str) -> Context | None:
    """Read a W3C traceparent as the parent of a span; None if it is none: then the caller's own span is the parent."""
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    return context if get_current_span(context).get_span_context().is_valid else None


def traceparent_of(span: Span) -> str:
    """Write a span as a W3C traceparent."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


class TracedSink:
    """Takes events on their way to the reader: a span ends when the answer comes, not when somebody reads it."""

    def __init__(self, sink: Sink, trace: Trace) -> None:
        self.trace = trace
        self._sink = sink

    def put(self, event: Event) -> bool:
        """Pass an event on. Called by the client's shell."""
        if isinstance(event, m.Final):
            self.trace.finish(event)
        elif isinstance(event, CancelledError):
            self.trace.cancel()
        elif isinstance(event, ZmqrtError):
            self.trace.fail(event)
        return self._sink.put(event)


class Trace:
    """The span of one request; its stages are its children. It ends once, whoever says so first."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._began_ns = time.time_ns()
        self._lock = threading.Lock()
        self._is_over = False

    def finish(self, final: m.Final) -> None:
        """End well, with what the answer tells."""
        if self._is_last_word():
            self._span.set_attributes(_answered(final.meta))
            self._draw_stages(final.ext)
            self._span.end()

    def fail(self, error: BaseException) -> None:
        """End badly."""
        if self._is_last_word():
            from opentelemetry.trace import Status, StatusCode

            kind = error.kind.value if isinstance(error, RequestError) else type(error).__name__
            self._span.set_attribute("error.type", kind)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
            self._span.end()

    def cancel(self) -> None:
        """End because nobody waits any more, which is nobody's fault."""
        if self._is_last_word():
            self._span.set_attribute("zmqrt.cancelled", value=True)
            self._span.end()

    def _is_last_word(self) -> bool:
        with self._lock:
            was_over, self._is_over = self._is_over, True
        return not was_over

    def _draw_stages(self, timings: Mapping[str, object]) -> None:
        """Lay the stages end to end; what they leave free is the network and the client, half before, half after."""
        if "broker" not in timings:
            return  # one that is too old to say
        from opentelemetry.trace import get_tracer, set_span_in_context

        lengths = [(stage, _number(timings, f"{stage}_us") * _NS) for stage in STAGES]
        now_ns, parent = time.time_ns(), set_span_in_context(self._span)
        free_ns = now_ns - self._began_ns - sum(length for _, length in lengths)
        at_ns = self._began_ns + max(0, free_ns) // 2
        facts = {name: timings[key] for key, name in _FACTS.items() if isinstance(timings.get(key), str | int)}
        broker = {"zmqrt.broker": str(timings["broker"])}
        for stage, length in lengths:
            if not length and stage in ("lost", "decode"):
                continue
            where = facts if stage in ("dispatch", "prefill", "decode") else broker
            span = get_tracer("zmqrt").start_span(
                f"zmqrt.{stage}", context=parent, start_time=at_ns, attributes=dict[str, Any](where)
            )
            at_ns += length
            span.end(at_ns)


def _asked(call: Call) -> dict[str, str]:
    return {
        "gen_ai.operation.name": _OPERATIONS[call.task],
        "gen_ai.provider.name": "zmqrt",
        "gen_ai.request.model": call.service,
        "zmqrt.request_id": call.request_id,
        "zmqrt.rid": call.rid.hex(),
    }


def _answered(meta: Mapping[str, object]) -> dict[str, Any]:
    """Name what a node says of a generation; of an embedding it says nothing here."""
    reason, resumed = meta.get("finish_reason"), meta.get("resumed")
    if not isinstance(reason, str):
        return {}
    return {
        "gen_ai.usage.input_tokens": _number(meta, "prompt_tokens"),
        "gen_ai.usage.output_tokens": _number(meta, "completion_tokens"),
        "gen_ai.response.finish_reasons": (reason,),
        **({"zmqrt.resumed": resumed} if isinstance(resumed, str) else {}),
    }


def _number(meta: Mapping[str, object], name: str) -> int:
    value = meta.get(name)
    return value if type(value) is int and value > 0 else 0
