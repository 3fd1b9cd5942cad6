"""From what clients of many servers send to the fields of our schema: other names, neutral fields, defaults. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from ...protocol.errors import PortableError
from ...protocol.faults import show
from .extras import ALIASES, CHAT_EXTRAS, EXTRAS, MESSAGE_EXTRAS, PART_EXTRAS, Extra, same
from .schema import ChatRequest, CompletionRequest, ContentPart, EmbeddingRequest, Message

Request = type[ChatRequest] | type[CompletionRequest] | type[EmbeddingRequest]
UNSUPPORTED: Final = "unsupported_parameter"
_MOST_NAME: Final = 100
_MOST_MESSAGES: Final = 4096
_OF_CHATS: Final = EXTRAS | CHAT_EXTRAS
_OF_MESSAGES: Final = frozenset(Message.__struct_fields__)
_OF_PARTS: Final = frozenset(ContentPart.__struct_fields__)
_DEFAULT_BY_MINUS_ONE: Final = frozenset(
    {"max_tokens", "max_completion_tokens", "min_tokens", "top_k", "seed", "n", "logprobs", "top_logprobs"}
    | {"dimensions"}
)
"""Other servers take -1 for "not said" here."""


class InvalidRequestError(PortableError):
    """400: JSON, but not what this API takes. `param` names the field, `code` is a word for programs."""

    def __init__(self, text: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.param = param
        self.code = code


def normalize(given: dict[str, object], schema: Request) -> tuple[dict[str, object], dict[str, str]]:
    """Return the fields of the schema alone, and how the client called those that it calls otherwise.

    Raises:
        InvalidRequestError: (400) a field is unknown, or asks for what is not done.
    """
    fields, called = _lift_options(given)
    _rename(fields, called, schema)
    extras = _OF_CHATS if schema is ChatRequest else EXTRAS
    kept = _without_extras(fields, frozenset(schema.__struct_fields__), extras, lambda name: called.get(name, name))
    messages = kept.get("messages")
    if schema is ChatRequest and isinstance(messages, list):
        turns = cast("list[object]", messages)
        if len(turns) > _MOST_MESSAGES:
            text = f"messages: at most {_MOST_MESSAGES} are meant, not {len(turns)}"
            raise InvalidRequestError(text, param="messages")
        kept = {**kept, "messages": [_message(f"messages[{at}]", one) for at, one in enumerate(turns)]}
    return {name: value for name, value in kept.items() if not _is_default(name, value, schema)}, called


def refused(name: str, why: str) -> InvalidRequestError:
    """Build the answer to a field that would change the answer, were it obeyed."""
    return InvalidRequestError(f"{name}: {why}; leave it out", param=name, code=UNSUPPORTED)


def _lift_options(given: dict[str, object]) -> tuple[dict[str, object], dict[str, str]]:
    """Take the fields out of Ollama's `options`: they are the same, one level deeper."""
    fields = dict(given)
    options = fields.pop("options", None)
    if options is None:
        return fields, {}
    if not isinstance(options, dict):
        raise InvalidRequestError(f"options: an object is meant, not {show(options)}", param="options")
    called: dict[str, str] = {}
    for name, value in cast("dict[str, object]", options).items():
        if fields.get(name) is None:
            fields[name], called[name] = value, f"options.{name}"
    return fields, called


def _rename(fields: dict[str, object], called: dict[str, str], schema: Request) -> None:
    """Give what has another name elsewhere ours; where both stand, ours wins."""
    for alias, name in ALIASES.items():
        if alias not in fields or name not in schema.__struct_fields__:
            continue
        value = fields.pop(alias)
        if fields.get(name) is None:
            fields[name], called[name] = value, called.get(alias, alias)


def _without_extras(
    fields: dict[str, object], known: frozenset[str], extras: Mapping[str, Extra], named: Callable[[str], str]
) -> dict[str, object]:
    """Leave out what asks for nothing; `named` says how the client called a field."""
    if fields.keys() <= known:
        return fields
    kept: dict[str, object] = {}
    for name, value in fields.items():
        if name in known:
            kept[name] = value
        elif name not in extras:
            param = named(name)[:_MOST_NAME]
            raise InvalidRequestError(f"Unrecognized request argument supplied: {param}", param=param)
        elif not extras[name].is_neutral(value, fields):
            raise refused(named(name), extras[name].why)
    return kept


def _message(path: str, given: object) -> object:
    if not isinstance(given, dict):
        return given
    message = _nested(path, cast("dict[str, object]", given), _OF_MESSAGES, MESSAGE_EXTRAS)
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [_part(f"{path}.content[{at}]", one) for at, one in enumerate(cast("list[object]", content))]
    return {**message, "content": parts}


def _part(path: str, given: object) -> object:
    """Take a part of type text; another kind is named before its fields are."""
    if not isinstance(given, dict):
        return given
    part: dict[str, Any] = cast("dict[str, Any]", given)
    kind = part.get("type")
    if not isinstance(kind, str):
        return part
    if kind not in ("text", "input_text", "output_text"):
        text = f"{path}.type: parts of type {show(kind)} are not understood, only text"
        raise InvalidRequestError(text, param=path.partition(".content")[0] + ".content", code=UNSUPPORTED)
    return _nested(path, part, _OF_PARTS, PART_EXTRAS)


def _nested(
    path: str, given: dict[str, object], known: frozenset[str], extras: Mapping[str, Extra]
) -> dict[str, object]:
    return _without_extras(given, known, extras, lambda name: f"{path}.{name}")


def _is_default(name: str, value: object, schema: Request) -> bool:
    if name == "logit_bias" and value == []:
        return True  # llama.cpp's default
    if name == "logprobs" and schema is ChatRequest:
        return False  # true or false there
    return name in _DEFAULT_BY_MINUS_ONE and same(value, -1)
