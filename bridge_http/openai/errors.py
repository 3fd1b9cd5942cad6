"""What a failure looks like to OpenAI's clients: the same one table, in their shape. Pure."""

from __future__ import annotations

from ...protocol.errors import ConnectError, Kind, RequestError
from ...protocol.tasks import Generate
from ..errors import (
    Answer,
    BadHeaderError,
    BodyTooLargeError,
    BodyTooSlowError,
    ForbiddenHostError,
    UnauthorizedError,
    encode,
    headers_of,
    told,
)
from ..json_body import NotJsonError
from .requests import InvalidRequestError
from .schema import ErrorBody, ErrorReply

_PARAM = {Kind.NOT_FOUND: "model", Kind.WRONG_TASK: "model"}


def answer(error: Exception, subject: str | None = None) -> Answer:
    """Turn whatever went wrong on a /v1 path into status, headers and body. `subject`: what may be too long."""
    match error:
        case RequestError():
            row, status = error.row, error.row.openai_status
            param = _param(error, subject)
            code, text = told(error)
            body = ErrorBody(message=text, type=row.openai_type, param=param, code=code)
            return _answer(status, body, headers_of(error, status))
        case InvalidRequestError():
            return _answer(400, _invalid(error.text, error.code, error.param))
        case NotJsonError():
            return _answer(400, _invalid(str(error), "not_json"))
        case BadHeaderError():
            return _answer(400, _invalid(str(error), "bad_header", error.name))
        case BodyTooLargeError():
            return _answer(413, _invalid(str(error), "too_large"))
        case BodyTooSlowError():
            return _answer(408, _invalid(str(error), "too_slow"), {"connection": "close"})
        case UnauthorizedError():
            body = ErrorBody(message=str(error), type="authentication_error", code="invalid_api_key")
            return _answer(401, body, {"www-authenticate": "Bearer"})
        case ForbiddenHostError():
            return _answer(403, ErrorBody(message=str(error), type="permission_error", code="forbidden_host"))
        case ConnectError():
            body = ErrorBody(message=str(error), type="server_error", code="broker_unreachable")
            return _answer(503, body, {"retry-after": "1"})
        case _:
            text = "the bridge failed; its log has the details under the id in the header x-request-id"
            body = ErrorBody(message=text, type="server_error", code="bridge_failed")
            return _answer(500, body, {"x-should-retry": "false"})


def _param(error: RequestError, subject: str | None) -> str | None:
    """Name the field that a node or broker complained about: its words begin with it."""
    if error.kind is Kind.CONTEXT_EXCEEDED:
        return subject
    first = error.text.split(maxsplit=1)[0].rstrip(":") if error.text else ""
    if error.kind is Kind.BAD_REQUEST and first in Generate.__struct_fields__:
        return first
    return _PARAM.get(error.kind)


def no_route(status: int, text: str, code: str) -> Answer:
    """Answer 404 and 405."""
    return _answer(status, _invalid(text, code))


def within(error: Exception) -> bytes:
    """End a stream whose status has gone out."""
    return b"data: " + answer(error).body + b"\n\n"


def _answer(status: int, error: ErrorBody, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status=status, body=encode(ErrorReply(error=error)), headers=headers or {})


def _invalid(text: str, code: str | None, param: str | None = None) -> ErrorBody:
    return ErrorBody(message=text, type="invalid_request_error", param=param, code=code)
