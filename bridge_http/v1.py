"""The locked contract of POST /infer: bytes in, a `Generate` out, or the words of what is wrong with them.

Pure: it knows no HTTP and no broker. Nothing is ever added to this contract; what else a caller wants, headers say.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from ..protocol.errors import PortableError
from ..protocol.tasks import Generate
from .json_body import read_json

DEFAULT_MAX_TOKENS: Final = 100
DEFAULT_TEMPERATURE: Final = 0.7
_MAX_FIELD_CHARS: Final = 100
"""A field name that somebody else chose is repeated in our answer, so it is cut."""


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


class InvalidFieldError(PortableError):
    """422: JSON, but not this contract. `loc` leads to the field, `type` is a word for programs."""

    def __init__(self, loc: tuple[str, ...], text: str, type_: str) -> None:
        super().__init__(text)
        self.loc = loc
        self.text = text
        self.type = type_


_decoder: Final = msgspec.json.Decoder(InferRequest)


def parse(body: bytes) -> InferRequest:
    """Read the body of a request.

    The order is fixed, so that one mistake always gets one answer: bytes, JSON as a whole, then the fields.

    Raises:
        NotJsonError: (400)
        InvalidFieldError: (422)
    """
    text = read_json(body)
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None


def to_task(request: InferRequest) -> Generate:
    """Turn the request into the body that engines get; null takes the contract's default."""
    return Generate(
        prompt=request.prompt,
        max_tokens=DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
    )


_SHAPES: Final = (
    (re.compile(r"Object missing required field `(?P<name>\w+)`"), "missing", "this field is required"),
    (
        re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL),
        "extra_forbidden",
        f"unknown field; v1 has {', '.join(InferRequest.__struct_fields__)}",
    ),
)
_AT: Final = re.compile(r"^(?P<text>.*?)(?: - at `\$\.(?P<path>[^`]*)`)?$", re.DOTALL)


def _explain(text: str) -> InvalidFieldError:
    """Turn msgspec's sentence into a place, a sentence and a word."""
    for shape, type_, said in _SHAPES:
        if found := shape.match(text):
            return InvalidFieldError(("body", found["name"][:_MAX_FIELD_CHARS]), said, type_)
    found = _AT.match(text)
    assert found is not None
    path = tuple((found["path"] or "").split(".")) if found["path"] else ()
    said = found["text"].replace("`", "")
    return InvalidFieldError(("body", *path), said[:1].lower() + said[1:], _word(said))


def _word(said: str) -> str:
    if "got" in said:
        return "type_error"
    return "out_of_range" if "range" in said or "=" in said else "value_error"
