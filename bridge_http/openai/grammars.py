"""What an answer is to keep to, in the words of OpenAI, vLLM, SGLang, llama.cpp and Ollama: one grammar at most.

Pure.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from ...protocol.limits import MAX_GRAMMAR_CHARS
from ...protocol.tasks import Grammar
from ..errors import InvalidRequestError
from ..json_body import encode
from .schema import Generation, ResponseFormat, Schema, StructuredOutputs, says_any

NAMES: Final = frozenset(
    {"response_format", "structured_outputs", "json_schema", "regex", "ebnf", "format"}
    | {"guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar"}
)
"""The fields of a request that are about this."""
ANY_OBJECT: Final[Schema] = {"type": "object"}
"""What `json_object` asks for."""


def grammar_of(request: Generation) -> Grammar | None:
    """Return the one grammar that a request names, whatever it calls it. Raises InvalidRequestError."""
    if not says_any(request, NAMES):
        return None
    each = {
        "response_format": _of_format(request.response_format),
        "structured_outputs": _of_vllm(request.structured_outputs),
        "guided_json": _own("guided_json", request.guided_json),
        "guided_json_object": _json("guided_json_object", ANY_OBJECT) if request.guided_json_object else None,
        "guided_regex": _text("regex", request.guided_regex),
        "guided_choice": _choice(request.guided_choice),
        "guided_grammar": _text("lark", request.guided_grammar),
        "json_schema": _own("json_schema", request.json_schema),
        "regex": _text("regex", request.regex),
        "ebnf": _text("lark", request.ebnf),
        "format": _own("format", ANY_OBJECT if request.format == "json" else request.format),
    }
    found = {name: grammar for name, grammar in each.items() if grammar is not None}
    if len(found) > 1:
        first, second = list(found)[:2]
        raise InvalidRequestError(f"{second}: the answer can keep to one thing, and {first} says one", param=second)
    return next((_bounded(name, grammar) for name, grammar in found.items()), None)


def schema_grammar(name: str, schema: Schema | None) -> Grammar | None:
    """Return the grammar of the JSON schema in a field. Raises InvalidRequestError."""
    grammar = _json(name, schema)
    return None if grammar is None else _bounded(name, grammar)


def _bounded(name: str, grammar: Grammar) -> Grammar:
    """Return a grammar that is not too long. Raises InvalidRequestError."""
    if len(grammar.text) > MAX_GRAMMAR_CHARS:
        text = f"{name}: at most {MAX_GRAMMAR_CHARS} characters are meant, not {len(grammar.text)}"
        raise InvalidRequestError(text, param=name)
    return grammar


def _of_format(given: ResponseFormat | None) -> Grammar | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return _json("response_format", ANY_OBJECT if given.schema is None else given.schema)
    if given.type == "regex":
        if not given.pattern:
            raise InvalidRequestError("you must provide response_format.pattern", param="response_format.pattern")
        return Grammar(kind="regex", text=given.pattern)
    schema = given.json_schema.schema if given.json_schema is not None else None
    if schema is None:
        path = "response_format.json_schema" + (".schema" if given.json_schema is not None else "")
        raise InvalidRequestError(f"you must provide {path}", param=path, code="missing")
    return _json("response_format", schema)


def _of_vllm(given: StructuredOutputs | None) -> Grammar | None:
    if given is None:
        return None
    each = (
        _json("structured_outputs.json", given.json),
        _json("structured_outputs", ANY_OBJECT) if given.json_object else None,
        _text("regex", given.regex),
        _choice(given.choice),
        _text("lark", given.grammar),
    )
    found = [grammar for grammar in each if grammar is not None]
    if len(found) > 1:
        raise InvalidRequestError("structured_outputs: one of its fields is meant", param="structured_outputs")
    return found[0] if found else None


def _own(name: str, given: Schema | str | None) -> Grammar | None:
    """Take a field of its own; some clients send it false where they mean nothing."""
    return None if given is False else _json(name, given)


def _json(name: str, given: Schema | str | None) -> Grammar | None:
    """Take a schema; an empty one is a schema too, and says "any JSON"."""
    if given is None or given == "":
        return None
    if isinstance(given, str):
        return Grammar(kind="json_schema", text=given)
    try:
        return Grammar(kind="json_schema", text=encode(given).decode())
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{name}: half a character stands in it", param=name) from None


def _text(kind: Literal["regex", "lark"], given: str | None) -> Grammar | None:
    return Grammar(kind=kind, text=given) if given else None


def _choice(given: list[str] | None) -> Grammar | None:
    if not given:
        return None
    return Grammar(kind="regex", text="|".join(map(re.escape, given)) or "()")
