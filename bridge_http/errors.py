"""What a failure looks like over HTTP: status, headers and body, from the one table in protocol/errors.py.

Pure; it knows no framework. The OpenAI paths get their own shape from the same table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

import msgspec

from ..protocol.errors import ConnectError, ErrorKind, PortableError, RequestError
from .heads import RefusedError
from .json_body import NotJsonError
from .v1 import InvalidFieldError

MEDIA_TYPE: Final = "application/json; charset=utf-8"
"""Windows PowerShell 5.1 guesses ISO-8859-1 without the charset."""
_ALWAYS_SAY_WHEN: Final = (429, 503)
_SDK_RETRIES: Final = (408, 409, 429)
"""The OpenAI SDK sends these and every 5xx again by itself, unless `x-should-retry` says no."""
_BAD_VALUE: Final = (ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_EXCEEDED, ErrorKind.WRONG_TASK)
_REUSED: Final = (
    "idempotency_key_reused",
    "this Idempotency-Key was used before, for another body or model, or streamed and whole; choose a new key",
)
_encoder: Final = msgspec.json.Encoder()
_LINE_ENDS: Final = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (0x85, 0x2028, 0x2029))


class HttpError(PortableError):
    """What is refused over HTTP before anybody in the fleet is asked. The text is the exception's own."""

    status: ClassVar[int]
    reason: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})


class BodyTooLargeError(HttpError):
    """More bytes than the limit."""

    status, reason = 413, "too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is larger than {limit_bytes} bytes, the limit of this bridge (--body-limit)")


class BodyTooSlowError(HttpError):
    """Its end was not there in time."""

    status, reason = 408, "too_slow"
    headers = MappingProxyType({"connection": "close"})

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the body was not there within {timeout_s:g} s, the limit of this bridge (--body-timeout)")


class BodiesFullError(HttpError):
    """Bodies of others take all the room."""

    status, reason = 503, "bodies_full"
    headers = MappingProxyType({"retry-after": "1"})

    def __init__(self) -> None:
        super().__init__("this bridge is reading as many large bodies as it has room for; come back in a moment")


class EncodedBodyError(HttpError):
    """A compressed body."""

    status, reason = 415, "encoded_body"
    headers = MappingProxyType({"accept-encoding": "identity"})

    def __init__(self, coding: str) -> None:
        super().__init__(f"content-encoding {coding[:40]!r} is not understood here: send the body as it is")


class BadHeaderError(HttpError):
    """A header that cannot be what its sender meant. `name` is in small letters."""

    status, reason = 400, "bad_header"

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"header {name}: {text}")
        self.name = name


class BadApiKeyError(HttpError):
    """No key, or one that is not listed."""

    status, reason = 401, "unauthorized"
    headers = MappingProxyType({"www-authenticate": "Bearer"})


class ForbiddenHostError(HttpError):
    """A foreign Host or Origin, with no keys to tell friend from foe."""

    status, reason = 403, "forbidden_host"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Everything of an HTTP answer but the wire."""

    status: int
    body: bytes
    headers: dict[str, str]


def encode(value: object) -> bytes:
    """Write JSON in UTF-8, without the three characters beyond ASCII that many a reader takes for the end of a line.

    JSON and server-sent events allow them, but whoever reads a stream by `str.splitlines` (httpx's `iter_lines`,
    `requests` with `decode_unicode`) would cut an event in two there.
    """
    encoded = _encoder.encode(value)
    for character, escaped in _LINE_ENDS:
        if character in encoded:
            encoded = encoded.replace(character, escaped)
    return encoded


def answer(error: Exception, request_id: str) -> Answer:
    """Turn whatever went wrong on /infer into status, headers and body."""
    match error:
        case RequestError():
            return _request_error(error, request_id)
        case InvalidFieldError():
            return _invalid(error, request_id)
        case NotJsonError():
            return _simple(400, "not_json", str(error), request_id)
        case HttpError():
            return _simple(error.status, error.reason, str(error), request_id, dict(error.headers))
        case ConnectError():
            return _simple(503, "broker_unreachable", str(error), request_id, {"retry-after": "1"})
        case _:
            text = "the bridge failed; its log has the details under this request id"
            return _simple(500, "bridge_failed", text, request_id, {"x-should-retry": "false"})


def refused(error: RefusedError, request_id: str) -> Answer:
    """Answer a request that no endpoint has seen: which API it meant is not known, so it has the shapes of both."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    said = {"message": str(error), "type": kind, "param": None, "code": error.reason}
    body = encode({"detail": str(error), "reason": error.reason, "request_id": request_id, "error": said})
    headers = {"content-type": MEDIA_TYPE, "x-request-id": request_id}
    if error.status in _ALWAYS_SAY_WHEN:
        headers["retry-after"] = "1"
    return Answer(status=error.status, body=body, headers=headers)


def problem(error: Exception, request_id: str) -> dict[str, Any]:
    """Return the body alone, for the `error` event of a stream whose status has gone out."""
    decoded: dict[str, Any] = msgspec.json.decode(answer(error, request_id).body)
    return decoded


def _request_error(error: RequestError, request_id: str) -> Answer:
    if error.kind in _BAD_VALUE:
        return _invalid(_field_of(error), request_id)
    status = error.row.infer_status
    reason, text = told(error)
    return _simple(status, reason, text, request_id, headers_of(error, status))


def told(error: RequestError) -> tuple[str, str]:
    """Return the word and the sentence for it: what the wire calls a request id, its HTTP caller calls otherwise."""
    return _REUSED if error.kind is ErrorKind.CONFLICT else (error.kind.value, error.text)


def _field_of(error: RequestError) -> InvalidFieldError:
    """Only the prompt can still be wrong once v1 has accepted the body: what it holds, or how long it is."""
    return InvalidFieldError(("body", "prompt"), error.text, error.kind.value)


def headers_of(error: RequestError, status: int) -> dict[str, str]:
    """Say when to come back, and whether to come back at all."""
    headers: dict[str, str] = {}
    if status in _ALWAYS_SAY_WHEN or error.retry_after_s > 0:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if not error.retryable and (status in _SDK_RETRIES or status >= 500):
        headers["x-should-retry"] = "false"
    return headers


def _invalid(error: InvalidFieldError, request_id: str) -> Answer:
    detail = [FieldProblem(loc=error.loc, msg=error.text, type=error.type)]
    return Answer(status=422, body=encode(Invalid(detail=detail, request_id=request_id)), headers={})


def _simple(status: int, reason: str, text: str, request_id: str, headers: dict[str, str] | None = None) -> Answer:
    body = encode(Problem(detail=text, reason=reason, request_id=request_id))
    return Answer(status=status, body=body, headers=headers or {})
