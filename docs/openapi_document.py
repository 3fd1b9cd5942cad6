"""Describe every operation of the bridge by the structs of its endpoint: `make docs` writes it for /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from zmqrt.bridge_http import classify, rerank
from zmqrt.bridge_http.anthropic import message_schema as a
from zmqrt.bridge_http.errors import Invalid, Problem
from zmqrt.bridge_http.health import Alive, FleetHealth, FleetStatus
from zmqrt.bridge_http.infer import Cancelled
from zmqrt.bridge_http.openai import response_schema as rs
from zmqrt.bridge_http.openai import schema as s
from zmqrt.bridge_http.paths import COUNT_TOKENS, MESSAGES, RERANK, RESPONSES
from zmqrt.bridge_http.v1 import InferRequest, InferResponse
from zmqrt.protocol.version import VERSION

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"
_TEXT: Final = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        body: What a client sends, as JSON; None = nothing.
        answers: By status, what comes back as JSON; a string stands for plain text, None for no body.
        events: What a stream of events is, where there is one.
        failures: The struct of every failure, and the statuses that it may come with.
    """

    method: str
    path: str
    summary: str
    tag: str
    body: type | None = None
    answers: Mapping[int, type | str]
    events: str = ""
    failures: Mapping[int, type] = field(default_factory=dict[int, type])
    headers: Sequence[str] = ()
    needs_key: bool = True


_REQUEST_HEADERS: Final = {
    "Idempotency-Key": "Equal keys of a tenant make equal requests one; it may be asked for again, through any bridge.",
    "X-Request-Id": "A name for logs and answers: letters, digits, dot, dash, underscore. Minted if absent.",
    "X-Priority": "interactive, default or bulk, or a number; at most what the API key may have.",
    "X-Request-Timeout": "Seconds, in place of the bridge's own time for an answer; as far as its settings allow.",
    "Last-Event-ID": "The last event of a stream that was cut: it goes on after that. Needs its Idempotency-Key.",
    "traceparent": "W3C trace context, carried along to the node.",
}
_ASKING: Final = ("Idempotency-Key", "X-Request-Id", "X-Request-Timeout", "X-Priority", "traceparent")
_MEANING: Final = {
    200: "Done.",
    400: "Not JSON in UTF-8, or a header that says nothing; on OpenAI's paths also a field that is wrong.",
    401: "No key, or one that is not listed.",
    403: "While there are no keys: a Host or an Origin that is not this machine.",
    404: "There is no such thing.",
    405: "Not with this method.",
    408: "The body did not come in time.",
    409: "The key was used before, with another body.",
    413: "The body is over the limit.",
    415: "The body is compressed.",
    422: "JSON, but not this contract: the field is named.",
    429: "All are busy; Retry-After says when to come back.",
    499: "It was given up.",
    500: "The model raised; asking again does not help.",
    502: "The node was lost, and it cannot go on elsewhere.",
    503: "No node serves it now, the broker does not answer, or there is no room; Retry-After says when to come back.",
    504: "No answer in time.",
}
_EVERYWHERE: Final[tuple[int, ...]] = (401, 403)
_INFER_FAILURES: Final[dict[int, type]] = {
    **dict.fromkeys((400, *_EVERYWHERE, 408, 409, 413, 415, 429, 499, 500, 503, 504), Problem),
    422: Invalid,
}
_OPENAI_FAILURES: Final[dict[int, type]] = dict.fromkeys(
    (400, *_EVERYWHERE, 404, 408, 409, 413, 415, 429, 499, 500, 502, 503, 504), s.ErrorReply
)
_ANTHROPIC_FAILURES: Final[dict[int, type]] = dict.fromkeys(_OPENAI_FAILURES, a.MessagesError)
_PROBE: Final[dict[int, type]] = {503: FleetHealth, 403: Problem}
_TOKENS: Final = "`token` events with `text`, then `done` with the v1 response, or `error`; idle, a comment."
_CHUNKS: Final = "Chunks as `data:` lines (empty ones while idle), then `[DONE]`; or a chunk with `error`."
_PARTS: Final = "Events named as there, from `response.created` to `response.completed`; or `error`. Idle, a comment."
_STEPS: Final = "Events named as there, from `message_start` to `message_stop`, `ping` while idle; or `error`."
_RANK: Final = "Sort documents by how well they answer a query"
_CLASSES: Final = "Say which label a model gives to texts"


def _asking(
    path: str,
    summary: str,
    tag: str,
    body: type,
    answer: type,
    *,
    events: str = "",
    failures: Mapping[int, type] = _OPENAI_FAILURES,
) -> Operation:
    """Describe a path on which work is asked for; a stream can be gone on with."""
    return Operation(
        method="post",
        path=path,
        summary=summary,
        tag=tag,
        body=body,
        answers={200: answer},
        events=events,
        failures=failures,
        headers=(*_ASKING, "Last-Event-ID") if events else _ASKING,
    )


OPERATIONS: Final = (
    Operation(
        method="post",
        path="/infer",
        summary="Generate text: the locked v1 contract",
        tag="v1",
        body=InferRequest,
        answers={200: InferResponse},
        events=_TOKENS,
        failures=_INFER_FAILURES,
        headers=(*_ASKING, "Last-Event-ID"),
    ),
    Operation(
        method="delete",
        path="/infer/{request_id}",
        summary="Give up a request of this bridge by its X-Request-Id",
        tag="v1",
        answers={200: Cancelled},
        failures=dict.fromkeys((*_EVERYWHERE, 404), Problem),
    ),
    Operation(
        method="get",
        path="/v1/models",
        summary="List the models of the fleet",
        tag="OpenAI",
        answers={200: s.ModelList},
        failures=dict.fromkeys((*_EVERYWHERE, 503), s.ErrorReply),
    ),
    Operation(
        method="get",
        path="/v1/models/{model}",
        summary="Look for one model",
        tag="OpenAI",
        answers={200: s.Model},
        failures=dict.fromkeys((*_EVERYWHERE, 404, 503), s.ErrorReply),
    ),
    _asking("/v1/chat/completions", "Answer a conversation", "OpenAI", s.ChatRequest, s.ChatCompletion, events=_CHUNKS),
    _asking("/v1/completions", "Go on from plain text", "OpenAI", s.CompletionRequest, s.Completion, events=_CHUNKS),
    _asking(RESPONSES, "Answer a conversation", "OpenAI", rs.ResponsesRequest, rs.ResponseReply, events=_PARTS),
    _asking("/v1/embeddings", "Turn texts into vectors", "OpenAI", s.EmbeddingRequest, s.EmbeddingList),
    _asking(
        MESSAGES,
        "Answer a conversation",
        "Anthropic",
        a.MessagesRequest,
        a.MessageReply,
        events=_STEPS,
        failures=_ANTHROPIC_FAILURES,
    ),
    _asking(
        COUNT_TOKENS,
        "Count the tokens of a conversation",
        "Anthropic",
        a.CountRequest,
        a.TokenCount,
        failures=_ANTHROPIC_FAILURES,
    ),
    *(_asking(path, _RANK, "Cohere, Jina", rerank.RerankRequest, rerank.RerankReply) for path in RERANK),
    _asking("/v1/classify", _CLASSES, "vLLM", classify.ClassifyRequest, classify.ClassifyReply),
    *(
        Operation(
            method="get",
            path=path,
            summary=summary,
            tag="health",
            answers={200: FleetHealth},
            failures=_PROBE,
            needs_key=False,
        )
        for path, summary in (
            ("/health", "Whether requests are served now, and what the fleet looks like"),
            ("/readyz", "The same, for probes"),
            ("/startupz", "Whether a broker has answered since the bridge began"),
        )
    ),
    Operation(
        method="get",
        path="/livez",
        summary="Whether the process lives",
        tag="health",
        answers={200: Alive},
        failures={403: Problem},
        needs_key=False,
    ),
    Operation(
        method="get",
        path="/status",
        summary="What the fleet looks like: nodes, devices, models, counters",
        tag="health",
        answers={200: FleetStatus},
        failures=dict.fromkeys((*_EVERYWHERE, 503), Problem),
    ),
    Operation(
        method="get",
        path="/metrics",
        summary="Numbers for Prometheus",
        tag="health",
        answers={200: "Prometheus' text format."},
        failures=dict.fromkeys(_EVERYWHERE, Problem),
    ),
)

_WITH_EXTRAS: Final = (s.ChatRequest, s.Message, s.ContentPart, s.CompletionRequest, s.EmbeddingRequest)
"""Beside the fields of these, `openai/extras.py` lets more pass."""


def document() -> dict[str, Any]:
    """Build the OpenAPI 3.1 document."""
    structs = list(dict.fromkeys(_structs()))
    references, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for struct in _WITH_EXTRAS:
        del components[struct.__name__]["additionalProperties"]
    of = dict(zip(structs, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "zmqrt bridge",
            "version": VERSION,
            "description": "HTTP for a fleet of nodes: the locked v1 contract, the OpenAI API, Anthropic's Messages.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _structs() -> list[type]:
    found: list[type] = []
    for operation in OPERATIONS:
        kinds = (operation.body, *operation.answers.values(), *operation.failures.values())
        found += [one for one in kinds if isinstance(one, type)]
    return found


def _describe(operation: Operation, of: Mapping[type, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"summary": operation.summary, "tags": [operation.tag], "responses": {}}
    parameters = [_header(name) for name in operation.headers]
    parameters += [_place(part[1:-1]) for part in operation.path.split("/") if part.startswith("{")]
    if parameters:
        said["parameters"] = parameters
    if operation.needs_key:
        said["security"] = [{}, {"bearer": []}, {"key": []}]  # none, while the bridge has no keys
    if operation.body is not None:
        said["requestBody"] = {"required": True, "content": {_JSON: {"schema": of[operation.body]}}}
    for status, kind in (*operation.answers.items(), *operation.failures.items()):
        said["responses"][str(status)] = _answer(operation, status, kind, of)
    return said


def _answer(operation: Operation, status: int, kind: type | str, of: Mapping[type, Any]) -> dict[str, Any]:
    content: dict[str, Any]
    if isinstance(kind, str):
        content = {_TEXT: {"schema": {"type": "string", "description": kind}}}
    else:
        content = {_JSON: {"schema": of[kind]}}
    if operation.events and status == 200:
        content[_EVENTS] = {"schema": {"type": "string", "description": operation.events}}
    headers: dict[str, Any] = {"x-request-id": {"schema": {"type": "string"}}}
    if status in (429, 503):
        headers["retry-after"] = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
    return {"description": _MEANING[status], "headers": headers, "content": content}


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string"}, "description": _REQUEST_HEADERS[name]}


def _place(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
