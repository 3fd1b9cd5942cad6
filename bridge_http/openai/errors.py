"""What a failure looks like to OpenAI's clients: the same one table, in their shape. Pure."""

from __future__ import annotations

from ...protocol.errors import ConnectError, ErrorKind, RequestError
from ...protocol.tasks import Embed, Generate
from ..errors import (
    Answer,
    BadApiKeyError,
    BadHeaderError,
    ForbiddenHostError,
    HttpError,
    encode,
    headers_of,
    told,
)
from ..json_body import NotJsonError
from .normalize import InvalidRequestError
from .schema import ErrorBody, ErrorReply

_FIELDS = frozenset((*Generate.__struct_fields__, *Embed.__struct_fields__, "prompt_ids"))
_PROMPTS = ("prompt", "messages", "token_ids", "prompt_ids", "input")
"""What engines call that which the caller calls `subject`."""
_CALLED = {"truncate_to": "truncate_prompt_tokens", "truncate": "truncate_prompt_tokens"}
_PARAM = {ErrorKind.NOT_FOUND: "model", ErrorKind.WRONG_TASK: "model"}


def answer(error: Exception, subject: str | None = None) -> Answer:
    """Turn whatever went wrong on a /v1 path into status, headers and body. `subject`: what may be too long."""
    match error:
        case RequestError():
            row, status = error.row, error.row.openai_status
            code, text = told(error)
            param, text = _param(error.kind, text, subject)
            body = ErrorBody(message=text, type=row.openai_type, param=param, code=code)
            return _answer(status, body, headers_of(error, status))
        case InvalidRequestError():
            return _answer(400, _invalid(error.text, error.code, error.param))
        case NotJsonError():
            return _answer(400, _invalid(str(error), "not_json"))
        case BadHeaderError():
            return _answer(400, _invalid(str(error), "bad_header", error.name))
        case BadApiKeyError():
            body = ErrorBody(message=str(error), type="authentication_error", code="invalid_api_key")
            return _answer(401, body, dict(error.headers))
        case ForbiddenHostError():
            return _answer(403, ErrorBody(message=str(error), type="permission_error", code="forbidden_host"))
        case HttpError():
            kind = "server_error" if error.status >= 500 else "invalid_request_error"
            return _answer(
                error.status, ErrorBody(message=str(error), type=kind, code=error.reason), dict(error.headers)
            )
        case ConnectError():
            body = ErrorBody(message=str(error), type="server_error", code="broker_unreachable")
            return _answer(503, body, {"retry-after": "1"})
        case _:
            text = "the bridge failed; its log has the details under the id in the header x-request-id"
            body = ErrorBody(message=text, type="server_error", code="bridge_failed")
            return _answer(500, body, {"x-should-retry": "false"})


def _param(kind: ErrorKind, text: str, subject: str | None) -> tuple[str | None, str]:
    """Name the field that a node or broker complained about, whose words begin with it, as OpenAI calls it."""
    if kind is ErrorKind.CONTEXT_EXCEEDED:
        return subject, text
    first, _, rest = text.partition(" ")
    name = first.rstrip(":")
    if kind is not ErrorKind.BAD_REQUEST or name not in _FIELDS:
        return _PARAM.get(kind), text
    theirs = subject if name in _PROMPTS and subject else _CALLED.get(name, name)
    return theirs, f"{theirs}{first[len(name) :]} {rest}"


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
