"""What goes wrong over HTTP, and what is answered then: from the one table in protocol/errors.py, in three shapes.

/infer has a shape of its own, the Messages API has Anthropic's, and the other paths under /v1 have OpenAI's. Who asks
where nothing is may be a client of any, so it finds the fields of the first and the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from ..protocol.errors import ConnectError, ErrorKind, PortableError, RequestError
from ..protocol.tasks import Classify, Embed, Generate, Rerank
from .anthropic.message_schema import MessagesError, TypedError
from .json_body import MEDIA_TYPE, NotJsonError, encode
from .openai.schema import ErrorBody, ErrorReply
from .paths import ANTHROPIC, COUNT_TOKENS, MESSAGES, OPENAI, RERANK, RESPONSES, shape_of

CLIENT_GONE: Final = 499
"""Nobody reads this status; it is for the access log."""
_ALWAYS_SAY_WHEN: Final = (429, 503)
_SDK_RETRIES: Final = (408, 409, 429)
"""The OpenAI SDK sends these and every 5xx again by itself, unless `x-should-retry` says no."""
_BAD_VALUE: Final = (ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_EXCEEDED, ErrorKind.WRONG_TASK)
_REUSED: Final = (
    "idempotency_key_reused",
    "this Idempotency-Key was used before, for another body or model, or streamed and whole; choose a new key",
)
_TASK_FIELDS: Final = frozenset(
    (*(name for task in (Generate, Embed, Rerank, Classify) for name in task.__struct_fields__), "prompt_ids")
)
_PROMPTS: Final = ("prompt", "messages", "token_ids", "prompt_ids", "input")
"""What engines call that which its caller calls as `_SUBJECT` says."""
_LONG_QUERY: Final = "your query resulted in"
"""Of `protocol.errors.too_long`: of what a reranker reads, it is not the documents that are too long."""
_SUBJECT: Final = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    RESPONSES: "input",
    MESSAGES: "messages",
    COUNT_TOKENS: "messages",
    "/v1/embeddings": "input",
    "/v1/classify": "input",
    **dict.fromkeys(RERANK, "documents"),
}
_CALLED: Final = {
    (RESPONSES, "max_tokens"): "max_output_tokens",
    (RESPONSES, "grammar"): "text.format.schema",
    ("/v1/chat/completions", "rendering"): "chat_template_kwargs",
    (MESSAGES, "rendering"): "messages",
    (MESSAGES, "stop"): "stop_sequences",
    (MESSAGES, "grammar"): "output_config.format.schema",
    ("/v1/embeddings", "truncate_to"): "truncate_prompt_tokens",
    ("/v1/embeddings", "truncate"): "truncate_prompt_tokens",
}
_ANTHROPIC_TYPE: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""What Anthropic calls a failure, by its status; all others are `invalid_request_error` below 500, else `api_error`."""
_MEDIA_TYPE: Final = MEDIA_TYPE.encode()
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_PARAM: Final = {ErrorKind.NOT_FOUND: "model", ErrorKind.WRONG_TASK: "model"}


class HttpError(PortableError):
    """What is refused over HTTP before anybody in the fleet is asked. The text is the exception's own.

    Attributes:
        reason: A word for programs; `code` on /v1 paths.
        openai_type: `error.type` on /v1 paths; "" = as the status has it.
        param: The field or header that is wrong.
    """

    status: int = 400
    reason: str = ""
    openai_type: str = ""
    openai_code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = _NO_HEADERS


class InvalidFieldError(HttpError):
    """JSON, but not the contract of /infer. `loc` leads to the field, `type` is a word for programs."""

    status, reason = 422, "invalid_field"

    def __init__(self, loc: tuple[str, ...], text: str, type_: str) -> None:
        super().__init__(text)
        self.loc = loc
        self.text = text
        self.type = type_


class InvalidRequestError(HttpError):
    """JSON, but not what the OpenAI API takes."""

    def __init__(self, text: str, *, param: str | None = None, code: str = ErrorKind.BAD_REQUEST.value) -> None:
        super().__init__(text)
        self.param = param
        self.reason = code


class RefusedError(HttpError):
    """A refusal that is thrown in one place and told from others by nobody: of a head, a body, a connection, a name."""

    def __init__(self, status: int, reason: str, text: str, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.headers = {"retry-after": "1"} if status in _ALWAYS_SAY_WHEN else headers


class NoRouteError(HttpError):
    """There is no such path, or the path does not take this method."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(text)
        self.status = status
        self.reason = {404: "no_such_path", 405: "method_not_allowed"}.get(status, "http_error")
        self.headers = headers


class BadHeaderError(HttpError):
    """A header that cannot be what its sender meant. `name` is in small letters."""

    reason = "bad_header"

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"header {name}: {text}")
        self.param = name


class BadApiKeyError(HttpError):
    """No key, or one that is not listed."""

    status, reason = 401, "unauthorized"
    openai_type, openai_code = "authentication_error", "invalid_api_key"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class ForbiddenHostError(HttpError):
    """A foreign Host or Origin, with no keys to tell friend from foe."""

    status, reason, openai_type = 403, "forbidden_host", "permission_error"


class ForbiddenModelError(HttpError):
    """The key may not ask this model. OpenAI says of such a one that it is not found; the locked contract has a 403."""

    reason, param = "model_not_found", "model"

    def __init__(self, model: str | None, allowed: Sequence[str], path: str) -> None:
        what = f"may not ask {model[:128]!r}" if model else "has to name a model"
        super().__init__(f"this key {what}; it may ask {', '.join(allowed)}")
        self.status = 404 if path in OPENAI or path in ANTHROPIC else 403


class LimitError(HttpError):
    """More than the key, or its tenant, may ask for. The budget of a month is told as OpenAI tells it, for clients that
    come back after a while else would come back all month.
    """

    status = 429

    def __init__(self, text: str, wait_s: float, *, is_budget: bool) -> None:
        super().__init__(text)
        self.reason = "insufficient_quota" if is_budget else "rate_limit_exceeded"
        self.openai_type = "insufficient_quota" if is_budget else "rate_limit_error"
        again = {"x-should-retry": "false"} if is_budget else _NO_HEADERS
        self.headers = {"retry-after": str(max(1, math.ceil(wait_s))), **again}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an answer that is no success: a sentence for people, a word for programs, and which request it was."""

    detail: str
    reason: str
    request_id: str


class FieldProblem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one field; `loc` leads to it."""

    loc: tuple[str, ...]
    msg: str
    type: str


class Invalid(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a 422: which field, and why."""

    detail: list[FieldProblem]
    request_id: str


class _Failure(NamedTuple):
    """What there is to say of a failure in either shape. `fields` is for a 422 on /infer alone."""

    status: int
    text: str
    reason: str
    code: str | None
    type: str
    param: str | None = None
    headers: Mapping[str, str] = _NO_HEADERS
    fields: Sequence[FieldProblem] = ()


def refusal(error: Exception, path: str, request_id: str) -> Response:
    """Answer with whatever went wrong, in the shape of its path; "" where it is not known which one was meant."""
    failure = _describe(error, path)
    response = json_response(failure.status, _body(failure, path, request_id), failure.headers)
    if shape_of(path) == "anthropic":
        response.headers["request-id"] = request_id
    return response


def problem(error: Exception, path: str, request_id: str) -> object:
    """Return the body of a refusal alone, for the last event of a stream whose status has gone out."""
    return _body(_describe(error, path), path, request_id)


class _JsonResponse(Response):
    """An answer whose fields are known: the framework takes a tenth of a request to find them."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", _MEDIA_TYPE)]
        for name, value in headers.items() if headers else ():
            self.raw_headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))


def json_response(status: int, body: object, headers: Mapping[str, str] = _NO_HEADERS) -> Response:
    """Answer with JSON."""
    return _JsonResponse(status, encode(body), headers)


def _body(failure: _Failure, path: str, request_id: str) -> object:
    shape = shape_of(path)
    if shape == "own" and failure.fields:
        return Invalid(detail=list(failure.fields), request_id=request_id)
    own = Problem(detail=failure.text, reason=failure.reason, request_id=request_id)
    if shape == "own":
        return own
    if shape == "anthropic":
        type_ = _ANTHROPIC_TYPE.get(failure.status, "invalid_request_error" if failure.status < 500 else "api_error")
        return MessagesError(error=TypedError(type=type_, message=failure.text), request_id=request_id)
    error = ErrorBody(message=failure.text, type=failure.type, param=failure.param, code=failure.code)
    reply = ErrorReply(error=error)
    if shape == "openai":
        return reply
    both: dict[str, Any] = {**msgspec.structs.asdict(own), **msgspec.structs.asdict(reply)}
    return both


def _describe(error: Exception, path: str) -> _Failure:
    match error:
        case RequestError():
            return _of_fleet(error) if shape_of(path) == "own" else _of_fleet_for_openai(error, path)
        case HttpError():
            return _of_http(error)
        case NotJsonError():
            return _failure(400, "not_json", str(error), "invalid_request_error")
        case ConnectError():
            return _failure(503, "broker_unreachable", str(error), "server_error", {"retry-after": "1"})
        case _:
            text = "the bridge failed; its log has the details under the id in the header x-request-id"
            return _failure(500, "bridge_failed", text, "server_error", {"x-should-retry": "false"})


def _failure(status: int, word: str, text: str, type_: str, headers: Mapping[str, str] = _NO_HEADERS) -> _Failure:
    return _Failure(status=status, text=text, reason=word, code=word, type=type_, headers=headers)


def _of_http(error: HttpError) -> _Failure:
    fields: list[FieldProblem] = []
    if isinstance(error, InvalidFieldError):
        fields = [FieldProblem(loc=error.loc, msg=error.text, type=error.type)]
    return _Failure(
        status=error.status,
        text=str(error),
        reason=error.reason,
        code=error.openai_code or error.reason or None,
        type=error.openai_type or ("server_error" if error.status >= 500 else "invalid_request_error"),
        param=error.param,
        headers=error.headers,
        fields=fields,
    )


def _of_fleet(error: RequestError) -> _Failure:
    """Describe what a broker or node says, for /infer: once v1 has accepted a body, only its prompt can be wrong."""
    reason, text = _words(error)
    fields = [FieldProblem(loc=("body", "prompt"), msg=text, type=reason)] if error.kind in _BAD_VALUE else []
    status, headers = error.row.infer_status, _retry_headers(error, error.row.infer_status)
    return _Failure(status=status, text=text, reason=reason, code=reason, type="", headers=headers, fields=fields)


def _of_fleet_for_openai(error: RequestError, path: str) -> _Failure:
    code, text = _words(error)
    param, text = _named(error.kind, text, path)
    status, type_ = error.row.openai_status, error.row.openai_type
    headers = _retry_headers(error, status)
    return _Failure(status=status, text=text, reason=code, code=code, type=type_, param=param, headers=headers)


def _words(error: RequestError) -> tuple[str, str]:
    """Return the word and the sentence for it: what the wire calls a request id, its HTTP caller calls otherwise."""
    return _REUSED if error.kind is ErrorKind.CONFLICT else (error.kind.value, error.text)


def _named(kind: ErrorKind, text: str, path: str) -> tuple[str | None, str]:
    """Name the field that a node or broker complained about, whose words begin with it, as OpenAI calls it."""
    subject = _SUBJECT.get(path)
    if kind is ErrorKind.CONTEXT_EXCEEDED:
        return "query" if path in RERANK and _LONG_QUERY in text else subject, text
    first, _, rest = text.partition(" ")
    name = first.rstrip(":").partition("[")[0]
    if kind is not ErrorKind.BAD_REQUEST or name not in _TASK_FIELDS:
        return _PARAM.get(kind), text
    theirs = subject if name in _PROMPTS and subject else _CALLED.get((path, name), name)
    return theirs, f"{theirs}{first[len(name) :]} {rest}"


def _retry_headers(error: RequestError, status: int) -> dict[str, str]:
    """Say when to come back, and whether to come back at all."""
    headers: dict[str, str] = {}
    if status in _ALWAYS_SAY_WHEN or error.retry_after_s > 0:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if not error.retryable and (status in _SDK_RETRIES or status >= 500):
        headers["x-should-retry"] = "false"
    return headers
