"""The locked contract of POST /infer: bytes in, a `Generate` out, or the words of what is wrong with them.

Pure: it knows no HTTP and no broker. Nothing is ever added to this contract; what else a caller wants, headers say.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from ..protocol.faults import Fault, Word, find_fault
from ..protocol.tasks import Generate
from .errors import InvalidFieldError
from .json_body import read_value

DEFAULT_MAX_TOKENS: Final = 100
DEFAULT_TEMPERATURE: Final = 0.7
_WORDS: Final[dict[Word, str]] = {
    "missing": "missing",
    "unknown": "extra_forbidden",
    "type": "type_error",
    "range": "out_of_range",
    "value": "value_error",
}
"""A word for programs for each kind of mistake: part of the contract."""


class InferRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client sends. Strict: no other field, no other type."""

    prompt: str
    api_version: Literal["v1"] = "v1"
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None


class InferResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What a client gets with status 200, and in the last event of a stream."""

    api_version: Literal["v1"] = "v1"
    text: str
    request_id: str


_decoder: Final = msgspec.json.Decoder(InferRequest)


def parse(body: bytes) -> InferRequest:
    """Read the body of a request.

    The order is fixed, so that one mistake always gets one answer: bytes, JSON as a whole, then the fields.

    Raises:
        NotJsonError: (400)
        InvalidFieldError: (422)
    """
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decoder.decode(body)
    value = read_value(body)  # once more, in the order of the contract and for its words
    try:
        return msgspec.convert(value, InferRequest)
    except msgspec.ValidationError as error:
        raise _explain(find_fault(error, value, InferRequest)) from None


def to_task(request: InferRequest) -> Generate:
    """Turn the request into the body that engines get; null takes the contract's default."""
    return Generate(
        prompt=request.prompt,
        max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
    )


def _explain(fault: Fault) -> InvalidFieldError:
    """Say which field is wrong, and what is meant there."""
    text = fault.text
    if fault.word == "unknown":
        text = f"unknown field; v1 has {', '.join(InferRequest.__struct_fields__)}"
    return InvalidFieldError(("body", fault.path) if fault.path else ("body",), text, _WORDS[fault.word])
