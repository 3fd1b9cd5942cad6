"""Render chat templates the way transformers does, and keep users from writing turns of their own.

Knows Jinja and strings; no tokenizer and no model. A template comes with its model and runs in Jinja's sandbox.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar, cast

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..protocol.errors import ErrorKind, request_error
from ..protocol.tasks import ChatMessage, Rendering, Tool, ToolCall
from .tool_prompt import tool_map, turn_map

S = TypeVar("S", ChatMessage, Tool, ToolCall)
_NONCHARACTERS: Final = range(0xFDD0, 0xFDF0)
"""Code points that Unicode keeps out of text for ever: one that no message contains marks what was broken up."""


_USUAL: Final = Rendering()
_BEHIND: Final = "\N{EM SPACE}"
"""What a template writes behind a turn only if it writes the turn as it is: one that strips it takes this as well."""
_PROBE: Final = "zmqrt probes"
"""Stands for an answer where the template is asked what comes behind one."""


class TemplateError(Exception):
    """A template that is of no use; the words say why."""


class ChatTemplate:
    """One model's template with the names it may use (`bos_token`, `eos_token`, …). Raises TemplateError."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        try:
            self._template = _environment().from_string(
                source, globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now}
            )
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {error.message}") from None
        except (jinja2.TemplateError, ValueError, RecursionError) as error:
            raise TemplateError(str(error)) from None
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source
        self.knows_tools = "tools" in source
        """Whether it tells its model of tools; it then writes calls and their results as well."""

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = (), rendering: Rendering = _USUAL) -> str:
        """Return the conversation as the model was trained to see it, as a rule up to where its answer begins.

        Raises:
            RequestError: (400) the template refuses the conversation (roles that must alternate, and the like).
        """
        try:
            return self._rendered(messages, tools, rendering)
        except TemplateError as error:
            raise request_error(
                ErrorKind.BAD_REQUEST, f"messages: the model's chat template refuses them: {error}"
            ) from None

    def _rendered(self, messages: Sequence[ChatMessage], tools: Sequence[Tool], how: Rendering) -> str:
        if not how.continue_final_message:
            return self._render(messages, tools, how.kwargs, add_generation_prompt=how.add_generation_prompt)
        *before, last = messages
        mark = _unused_character(list(_texts(messages, tools, how)))
        marked = [*before, msgspec.structs.replace(last, content=last.content + mark + _BEHIND)]
        text, found, rest = self._render(marked, tools, how.kwargs, add_generation_prompt=False).rpartition(mark)
        if not found:
            raise TemplateError("it does not write the last one, so it cannot be continued")
        return text if rest.startswith(_BEHIND) else text.rstrip()

    def _render(
        self,
        messages: Iterable[ChatMessage],
        tools: Iterable[Tool] = (),
        kwargs: Mapping[str, object] = _USUAL.kwargs,
        *,
        add_generation_prompt: bool,
    ) -> str:
        turns = [turn_map(message) | {"role": self._role(message.role)} for message in messages]
        try:
            return self._template.render(
                {"documents": None, **(kwargs or {})},
                messages=turns,
                tools=[tool_map(tool) for tool in tools] or None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise TemplateError(str(error)) from None

    def check(self) -> None:
        """Render the smallest conversations there are. Raises TemplateError if it takes neither."""
        user = ChatMessage(role="user", content="Hello")
        try:
            self._render([user], add_generation_prompt=True)
        except TemplateError as error:
            with contextlib.suppress(TemplateError):
                self._render([ChatMessage(role="system", content="Hello"), user], add_generation_prompt=True)
                return
            raise TemplateError(f"it renders not even a single message: {error}") from None

    def tail(self) -> str:
        """Return what it writes behind the last answer of a conversation; nothing if it takes no such conversation."""
        turns = [ChatMessage(role="user", content="Hello"), ChatMessage(role="assistant", content=_PROBE)]
        try:
            _, found, tail = self._render(turns, add_generation_prompt=False).rpartition(_PROBE)
        except TemplateError:
            return ""
        return tail.lstrip() if found else ""

    def _role(self, role: str) -> str:
        """Older models were trained before the role of a developer; they know it as the system's."""
        return "system" if role == "developer" and not self._knows_developer else role


class Shield:
    """Breaks up the text of special tokens inside what users wrote, so that rendering it makes no special token.

    The mark goes after the first character; whoever encodes takes it out again (`unmark`) and encodes that stretch as
    ordinary text.
    """

    def __init__(self, special_texts: Iterable[str]) -> None:
        texts = sorted((text for text in special_texts if len(text) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None

    def is_needed(
        self, messages: Iterable[ChatMessage], tools: Iterable[Tool] = (), rendering: Rendering = _USUAL
    ) -> bool:
        """Whether any message, or what else is told to the template, contains the text of a special token."""
        pattern = self._pattern
        return pattern is not None and any(pattern.search(text) for text in _texts(messages, tools, rendering))

    def mark(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = (), rendering: Rendering = _USUAL
    ) -> tuple[list[ChatMessage], list[Tool], Rendering, str]:
        """Return all that users wrote with every special text broken up, and the mark that does it."""
        assert self._pattern is not None
        mark = _unused_character(list(_texts(messages, tools, rendering)))
        broken = [self._broken(message, mark) for message in messages]
        kwargs = {name: self._broken_value(value, mark) for name, value in rendering.kwargs.items()}
        rendering = msgspec.structs.replace(rendering, kwargs=kwargs)
        return broken, [self._broken(tool, mark) for tool in tools], rendering, mark

    def _broken(self, given: S, mark: str) -> S:
        """Break up all texts of a struct, and of those in its lists. A role has none."""
        changed: dict[str, Any] = {}
        for name in given.__struct_fields__:
            value: Any = getattr(given, name)
            if isinstance(value, str) and value and name != "role":
                changed[name] = self._break(value, mark)
            elif isinstance(value, list):
                changed[name] = [self._broken(one, mark) for one in cast("list[ToolCall]", value)]
        return msgspec.structs.replace(given, **changed)

    def _broken_value(self, value: object, mark: str) -> object:
        """Break up the texts in a JSON value, which is not deep."""
        if isinstance(value, str):
            return self._break(value, mark)
        if isinstance(value, list):
            return [self._broken_value(one, mark) for one in cast("list[object]", value)]
        if isinstance(value, dict):
            pairs = cast("dict[str, object]", value).items()
            return {self._break(name, mark): self._broken_value(inner, mark) for name, inner in pairs}
        return value

    def _break(self, content: str, mark: str) -> str:
        """Break up every special text; one pass misses those that overlap with another, hence the loop."""
        assert self._pattern is not None
        while self._pattern.search(content):
            content = self._pattern.sub(lambda found: found[0][0] + mark + found[0][1:], content)
        return content


def _texts(messages: Iterable[ChatMessage], tools: Iterable[Tool], rendering: Rendering) -> Iterator[str]:
    """Yield all that users wrote. JSON comes with its escapes undone, as templates write it."""
    for message in messages:
        yield from (message.content, message.name or "", message.tool_call_id or "")
        for call in message.tool_calls:
            yield from (call.id, call.name, call.arguments)
    for tool in tools:
        yield from (tool.name, tool.description, tool.parameters)
    yield from _texts_in(rendering.kwargs)


def _texts_in(value: object) -> Iterator[str]:
    """Yield the texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in cast("list[object]", value):
            yield from _texts_in(one)
    elif isinstance(value, dict):
        for name, inner in cast("dict[str, object]", value).items():
            yield name
            yield from _texts_in(inner)


def _unused_character(texts: Sequence[str]) -> str:
    """Find a character that occurs in none of the texts."""
    for code in (*_NONCHARACTERS, *range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)):
        if not any(chr(code) in text for text in texts):
            return chr(code)
    raise request_error(ErrorKind.BAD_REQUEST, "messages: they use every private character of Unicode")


class _GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the filter's signature in templates
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - same
) -> str:
    """Jinja's own filter escapes HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return dt.datetime.now().strftime(form)  # noqa: DTZ005 - local time, as transformers has it
