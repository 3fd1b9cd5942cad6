"""From the JSON of a client of the Responses API to a task, or to the words of what is wrong with it. Pure.

Nothing is kept here: what refers to an answer from before is refused by name.
"""

from __future__ import annotations

from typing import Any, Final, cast

from ...protocol.faults import show
from ...protocol.tasks import ChatMessage, Generate, Grammar
from ..errors import InvalidRequestError
from .extras import EXTRAS, Extra
from .grammars import ANY_OBJECT, schema_grammar
from .requests import (
    DEFAULT_TEMPERATURE,
    LEAST_TOP_P,
    MOST_MESSAGES,
    UNSUPPORTED,
    convert,
    nested,
    read_fields,
    without_extras,
    without_message_extras,
)
from .response_schema import ResponsesRequest, TextConfig
from .schema import ContentPart

_STATELESS: Final = "nothing is kept here, so send the whole conversation as input"
_KNOWN: Final = frozenset(ResponsesRequest.__struct_fields__)
RESPONSE_EXTRAS: Final[dict[str, Extra]] = EXTRAS | {
    "store": Extra(_STATELESS, (False,)),
    "previous_response_id": Extra(_STATELESS, ()),
    "conversation": Extra(_STATELESS, ()),
    "prompt": Extra("nothing is kept here, prompts neither", ()),
    "background": Extra("nothing is kept here, so an answer is waited for", (False,)),
    "context_management": Extra("a history is taken as it comes", ([],)),
    "include": Extra("this bridge answers with text alone", ([], ["reasoning.encrypted_content"])),
    "max_tool_calls": Extra("says more about tools", None),
    "stream_options": Extra("there is no padding", None),
    "top_logprobs": Extra("log probabilities are told by /v1/chat/completions alone", (0,)),
    "truncation": Extra("a prompt that is too long is refused, not cut", ("disabled",)),
}
"""Beside what is obeyed; null is always let pass."""
_OF_TEXT: Final = {"verbosity": EXTRAS["verbosity"]}
_OF_ITEMS: Final = ("type", "phase")
"""What turns have here beside what they have in chats."""


def parse_response(body: bytes) -> ResponsesRequest:
    """Read a body.

    Raises:
        NotJsonError: (400) it is not JSON in UTF-8.
        InvalidRequestError: (400) it is not this API, or asks for what cannot be done.
    """
    fields = dict(without_extras(read_fields(body), _KNOWN, RESPONSE_EXTRAS, lambda name: name))
    if isinstance(text := fields.get("text"), dict):
        known = frozenset(TextConfig.__struct_fields__)
        fields["text"] = nested("text", cast("dict[str, object]", text), known, _OF_TEXT)
    if isinstance(items := fields.get("input"), list):
        fields["input"] = _turns(cast("list[object]", items))
    return convert(fields, {}, ResponsesRequest)


def _turns(items: list[object]) -> list[object]:
    if len(items) > MOST_MESSAGES:
        raise InvalidRequestError(f"input: at most {MOST_MESSAGES} are meant, not {len(items)}", param="input")
    return [_turn(f"input[{at}]", item) for at, item in enumerate(items) if not _is_thought(item)]


def _is_thought(item: object) -> bool:
    """Whether an item is what a model thought, which other servers' answers may hold: models get what was said."""
    return isinstance(item, dict) and cast("dict[str, object]", item).get("type") == "reasoning"


def _turn(path: str, given: object) -> object:
    """Take an item that is a turn; another kind is named before its fields are."""
    if not isinstance(given, dict):
        return given
    item = cast("dict[str, object]", given)
    kind = item.get("type", "message")
    if kind not in ("message", None):
        text = f"{path}.type: items of type {show(kind)} are not understood, only messages"
        raise InvalidRequestError(text, param=f"{path}.type", code=UNSUPPORTED)
    return without_message_extras(path, {name: value for name, value in item.items() if name not in _OF_ITEMS})


def response_task(request: ResponsesRequest) -> Generate:
    """Turn a request into the task that engines get. Raises InvalidRequestError."""
    given = {
        "top_p": None if request.top_p is None else max(request.top_p, LEAST_TOP_P),
        "seed": None if request.seed is None else request.seed % 2**63,
    }
    rest: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return Generate(
        messages=_conversation(request),
        max_tokens=request.max_output_tokens,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        grammar=_grammar(request.text),
        **rest,
    )


def _conversation(request: ResponsesRequest) -> list[ChatMessage]:
    turns = [ChatMessage(role="system", content=request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return [*turns, ChatMessage(role="user", content=request.input)]
    return [*turns, *(ChatMessage(role=turn.role, content=_text(turn.content)) for turn in request.input)]


def _text(content: str | list[ContentPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _grammar(config: TextConfig | None) -> Grammar | None:
    form = config.format if config is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return schema_grammar("text.format", ANY_OBJECT)
    if form.schema is None:
        raise InvalidRequestError("you must provide text.format.schema", param="text.format.schema", code="missing")
    return schema_grammar("text.format.schema", form.schema)
