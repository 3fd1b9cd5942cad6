"""What an answer is to keep to, as callers say it: a schema, a type, a regular expression, a Lark grammar. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from . import arguments

Schema = Mapping[str, Any] | str | type[Any]
_KINDS: Final = {"schema": "json_schema", "regex": "regex", "lark": "lark"}
OPTIONS: Final = frozenset(_KINDS)
"""The names of the options that are about this."""


def take_from(fields: dict[str, Any]) -> dict[str, str] | None:
    """Take `schema`, `regex` or `lark` out of the options of a request; return `Generate.grammar`, None without any.

    Raises:
        RequestError: (400) more than one is given, or it is nothing of the kind.
    """
    given = {name: value for name in _KINDS if (value := fields.pop(name, None)) is not None}
    if not given:
        return None
    if len(given) > 1:
        raise arguments.bad(" and ".join(given), "the answer can keep to one of them")
    ((name, value),) = given.items()
    text = schema_text(value) if name == "schema" else value
    if not isinstance(text, str):
        raise arguments.bad(name, f"expected text, got {arguments.kind_of(value)}")
    return {"kind": _KINDS[name], "text": text}


def schema_text(schema: object) -> str:
    """Write a JSON Schema as text; of a type, what msgspec or pydantic say that it looks like. Raises RequestError."""
    if isinstance(schema, str):
        return schema
    try:
        return msgspec.json.encode(_described(schema)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise arguments.bad("schema", f"{arguments.kind_of(schema)} says no JSON Schema: {error}") from None


def _described(schema: object) -> dict[str, Any]:
    if isinstance(schema, Mapping):
        return {**cast("Mapping[str, Any]", schema)}
    own: Any = getattr(schema, "model_json_schema", None)
    described: dict[str, Any] = own() if own is not None else msgspec.json.schema(cast("Any", schema))
    return described
