"""What is answered before, or instead of, an endpoint: in the shape of the path that was asked for. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from . import paths
from .errors import Answer, Problem, answer, encode
from .openai.errors import answer as openai_answer
from .openai.errors import no_route


def refusal(error: Exception, path: str, request_id: str) -> Answer:
    """Turn what went wrong into an answer whose fields the caller knows."""
    shape = paths.shape_of(path)
    if shape == "own":
        return answer(error, request_id)
    said = openai_answer(error)
    return said if shape == "openai" else _both(said, answer(error, request_id))


def misrouted(status: int, text: str, path: str, request_id: str) -> Answer:
    """Answer 404 and 405, and what else a framework says of itself."""
    reason = {404: "no_such_path", 405: "method_not_allowed"}.get(status, "http_error")
    own = Answer(status=status, body=encode(Problem(detail=text, reason=reason, request_id=request_id)), headers={})
    shape = paths.shape_of(path)
    if shape == "own":
        return own
    said = no_route(status, text, reason)
    return said if shape == "openai" else _both(said, own)


def _both(openai: Answer, own: Answer) -> Answer:
    fields: dict[str, Any] = {**msgspec.json.decode(openai.body), **msgspec.json.decode(own.body)}
    return Answer(status=openai.status, body=encode(fields), headers={**own.headers, **openai.headers})
