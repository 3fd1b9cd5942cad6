"""From the JSON of a client of the Responses API to a task, or to the words of what is wrong with it. Pure.

Nothing is kept here: what refers to an answer from before is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from ...protocol.faults import show
from ...protocol.tasks import ChatMessage, Generate, Grammar, Rendering, Tool, ToolCall
from ..errors import InvalidRequestError
from ..json_body import encode
from ..server_tools import kept_tools
from .extras import EXTRAS, Extra
from .grammars import ANY_OBJECT, schema_grammar
from .passing import list_of, map_of
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
from .response_schema import (
    InputCall,
    InputCallOutput,
    InputTurn,
    ResponsesRequest,
    ResponseTool,
    ResponseToolName,
    TextConfig,
)
from .schema import ContentPart
from .thinking import reasoning_kwargs

_STATELESS: Final = "nothing is kept here, so send the whole conversation as input"
_KNOWN: Final = frozenset(ResponsesRequest.__struct_fields__)
_IN_OTHER_ANSWERS: Final = (
    *("reasoning.encrypted_content", "web_search_call", "file_search_call", "code_interpreter_call", "computer_call"),
    "message.input_image",
)
"""How names begin of what could be told beside an answer, and is in none of ours."""


def _includes_nothing(value: object, _fields: Mapping[str, object]) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, str) and one.startswith(_IN_OTHER_ANSWERS) for one in cast("list[object]", value)
    )


RESPONSE_EXTRAS: Final[dict[str, Extra]] = EXTRAS | {
    "store": Extra(_STATELESS, (False,)),
    "previous_response_id": Extra(_STATELESS, ()),
    "conversation": Extra(_STATELESS, ()),
    "prompt": Extra("nothing is kept here, prompts neither", ()),
    "background": Extra("nothing is kept here, so an answer is waited for", (False,)),
    "context_management": Extra("a history is taken as it comes", ([],)),
    "client_metadata": Extra("says who asks, or in which connection", None),
    "include": Extra("this bridge answers with text alone", _includes_nothing),
    "max_tool_calls": Extra("says more about tools", None),
    "stream_options": Extra("there is no padding", None),
    "top_logprobs": Extra("log probabilities are told by /v1/chat/completions alone", (0,)),
    "truncation": Extra("a prompt that is too long is refused, not cut", ("disabled",)),
}
"""Beside what is obeyed; null is always let pass."""
_OF_TEXT: Final = {"verbosity": EXTRAS["verbosity"]}
_BESIDE: Final[dict[str, Extra]] = dict.fromkeys(
    ("id", "status", "namespace", "created_by"), Extra("models get the call alone", None)
)
_CALLS: Final = {
    kind: frozenset(item.__struct_fields__) | {"type"}
    for kind, item in (("function_call", InputCall), ("function_call_output", InputCallOutput))
}
_KINDS: Final = ("message", *_CALLS)
_OF_TOOLS: Final = {"defer_loading": Extra("models are told of all tools", (False,))}
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
    if isinstance(tools := fields.get("tools"), list):
        offered = kept_tools(cast("list[object]", tools), fields.get("tool_choice"))
        fields["tools"] = [one for at, tool in offered for one in _tools_in(f"tools[{at}]", tool)]
    if isinstance(items := fields.get("input"), list):
        fields["input"] = _turns(cast("list[object]", items))
    return convert(fields, {}, ResponsesRequest)


def _turns(items: list[object]) -> list[object]:
    if len(items) > MOST_MESSAGES:
        raise InvalidRequestError(f"input: at most {MOST_MESSAGES} are meant, not {len(items)}", param="input")
    return [_item(f"input[{at}]", item) for at, item in enumerate(items) if not _is_thought(item)]


def _is_thought(item: object) -> bool:
    """Whether an item is what a model thought, which other servers' answers may hold: models get what was said."""
    return isinstance(item, dict) and cast("dict[str, object]", item).get("type") == "reasoning"


def _item(path: str, given: object) -> object:
    """Take a turn, a call or what it came to; another kind is named before its fields are."""
    if not isinstance(given, dict):
        return given
    item = cast("dict[str, object]", given)
    kind = item.get("type") or "message"
    if kind == "message":
        turn = {name: value for name, value in item.items() if name not in _OF_ITEMS}
        turn.pop("name", None)
        return {"type": kind, **cast("dict[str, object]", without_message_extras(path, turn))}
    if not isinstance(kind, str) or kind not in _CALLS:
        text = f"{path}.type: items of type {show(kind)} are not understood, only {', '.join(_KINDS)}"
        raise InvalidRequestError(text, param=f"{path}.type", code=UNSUPPORTED)
    return nested(path, item, _CALLS[kind], _BESIDE)


def _tools_in(path: str, given: object) -> Iterator[object]:
    """Take a tool, or those of a namespace, each of which then knows its own."""
    group = map_of(given) or {}
    if group.get("type") != "namespace":
        yield _tool(path, given)
        return
    for at, tool in enumerate(list_of(group.get("tools")) or []):
        fields = map_of(tool)
        yield _tool(f"{path}.tools[{at}]", tool if fields is None else {**fields, "namespace": group.get("name")})


def _tool(path: str, given: object) -> object:
    """Take a tool; of another kind its type is named before its fields are."""
    if not isinstance(given, dict):
        return given
    tool = cast("dict[str, object]", given)
    if tool.get("type") not in ("function", None):
        text = f"{path}.type: tools of type {show(tool['type'])} are not understood, only functions"
        raise InvalidRequestError(text, param=f"{path}.type", code=UNSUPPORTED)
    return nested(path, tool, frozenset(ResponseTool.__struct_fields__), _OF_TOOLS)


def response_task(request: ResponsesRequest) -> Generate:
    """Turn a request into the task that engines get. Raises InvalidRequestError."""
    given = {
        "top_p": None if request.top_p is None else max(request.top_p, LEAST_TOP_P),
        "seed": None if request.seed is None else request.seed % 2**63,
    }
    rest: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    kwargs = reasoning_kwargs(request.reasoning)
    return Generate(
        messages=_conversation(request),
        max_tokens=request.max_output_tokens,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        grammar=_grammar(request.text),
        rendering=Rendering(kwargs=kwargs) if kwargs else None,
        **_tools(request),
        **rest,
    )


def _tools(request: ResponsesRequest) -> dict[str, Any]:
    """Return what a task says of tools; nothing without any, for nodes from before. Raises InvalidRequestError."""
    if not request.tools:
        if request.tool_choice not in (None, "none", "auto"):
            raise InvalidRequestError("tool_choice: there are no tools that could be called", param="tool_choice")
        return {}
    tools = [
        Tool(name=tool.name, description=tool.description or "", parameters=encode(tool.parameters or {}).decode())
        for tool in request.tools
    ]
    choice = request.tool_choice or "auto"
    said: dict[str, Any] = {"tool_choice": choice}
    if isinstance(choice, ResponseToolName):
        said = {"tool_choice": "required", "tool_name": choice.name}
    return {"tools": tools, "parallel_tool_calls": request.parallel_tool_calls is not False, **said}


def _conversation(request: ResponsesRequest) -> list[ChatMessage]:
    turns = [ChatMessage(role="system", content=request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return [*turns, ChatMessage(role="user", content=request.input)]
    names: dict[str, str] = {}
    for item in request.input:
        match item:
            case InputTurn():
                turns.append(ChatMessage(role=item.role, content=_text(item.content)))
            case InputCall():
                names[item.call_id] = item.name
                call = ToolCall(id=item.call_id, name=item.name, arguments=item.arguments)
                turns.append(_with_call(turns.pop() if turns and turns[-1].role == "assistant" else None, call))
            case InputCallOutput():
                name = names.get(item.call_id)
                text = _text(item.output)
                turns.append(ChatMessage(role="tool", content=text, tool_call_id=item.call_id, name=name))
    return turns


def _with_call(before: ChatMessage | None, call: ToolCall) -> ChatMessage:
    """Put a call into the assistant's turn that it belongs to, or into one of its own."""
    turn = before or ChatMessage(role="assistant", content="")
    return msgspec.structs.replace(turn, tool_calls=[*turn.tool_calls, call])


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
