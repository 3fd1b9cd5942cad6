"""From the JSON of a client of the Messages API to a task, or to the words of what is wrong with it. Pure.

What asks for nothing is let pass, and what would change the answer is refused by name: by the rules of the OpenAI
paths, and in their words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from ...protocol.faults import show
from ...protocol.tasks import ChatMessage, Generate, Grammar, Rendering, Tool, ToolCall
from ..errors import InvalidRequestError
from ..json_body import encode
from ..openai.extras import Extra
from ..openai.grammars import schema_grammar
from ..openai.requests import (
    DEFAULT_TEMPERATURE,
    LEAST_TOP_P,
    MOST_MESSAGES,
    UNSUPPORTED,
    convert,
    nested,
    read_fields,
    stops_of,
    without_extras,
)
from ..server_tools import kept_tools
from .message_schema import (
    CountRequest,
    MessagesRequest,
    OutputConfig,
    TextBlock,
    ToolChoice,
    ToolDefinition,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)

Q = TypeVar("Q", bound=CountRequest)
_THINKING: Final = "no engine here controls how a model thinks"
_SERVERS: Final = "nothing is run or looked up elsewhere"


def _rows(why: str, at: tuple[object, ...] | None, *names: str) -> dict[str, Extra]:
    return dict.fromkeys(names, Extra(why, at))


def _only_thoughts(value: object, _fields: Mapping[str, object]) -> bool:
    """Whether nothing else is to be taken out of a history than thoughts: those are left out anyway."""
    edits = cast("dict[str, object]", value).get("edits", []) if isinstance(value, dict) else None
    return isinstance(edits, list) and all(map(_clears_thoughts, cast("list[object]", edits)))


def _clears_thoughts(edit: object) -> bool:
    kind = cast("dict[str, object]", edit).get("type") if isinstance(edit, dict) else None
    return isinstance(kind, str) and kind.startswith("clear_thinking_")


EXTRAS: Final[dict[str, Extra]] = {
    **_rows("changes no answer", None, "metadata", "service_tier", "cache_control", "inference_geo", "speed", "betas"),
    **_rows("is about the account", None, "user_profile_id", "workspace_id", "diagnostics"),
    "context_management": Extra("a history is taken as it comes", _only_thoughts),
    **_rows("a model thinks as its chat template has it, and a budget is a target", None, "thinking"),
    **_rows(_SERVERS, ([],), "mcp_servers"),
    **_rows(_SERVERS, (), "container"),
}
"""Beside what is obeyed; null is always let pass."""
_OF_ANSWERS: Final = frozenset(MessagesRequest.__struct_fields__) - frozenset(CountRequest.__struct_fields__)
"""Let pass where tokens are counted, so that the body of a request can be counted as it is."""
_COUNT_EXTRAS: Final = EXTRAS | _rows("says something of the answer", None, *_OF_ANSWERS)
_OF_CONFIG: Final = _rows(_THINKING, ("high",), "effort") | _rows("an answer ends by max_tokens", (), "task_budget")
_OF_TURNS: Final = _rows(
    "models get role and content alone",
    None,
    *("id", "type", "model", "stop_reason", "stop_sequence", "stop_details", "usage", "container"),
)
"""Answers come back as turns, with all that they had."""
_BESIDE: Final = _rows("models get the text alone", None, "cache_control", "citations", "id", "parsed_output", "caller")
_BLOCKS: Final = {
    kind: frozenset(block.__struct_fields__) | {"type"}
    for kind, block in (("text", TextBlock), ("tool_use", ToolUseBlock), ("tool_result", ToolResultBlock))
}
_OF_TOOLS: Final = {
    **_rows("says more about the tool", None, "cache_control", "strict", "eager_input_streaming", "input_examples"),
    **_rows("models are told of all tools", (False,), "defer_loading"),
    **_rows("models call tools, programs do not", (["direct"],), "allowed_callers"),
    "type": Extra("only tools with a schema of their own are understood", ("custom",)),
}
_KINDS: Final = {"user": ("text", "tool_result"), "assistant": ("text", "tool_use")}
_THOUGHTS: Final = ("thinking", "redacted_thinking")
"""Blocks of a history that are left out, as clients of this API are told that they may be."""


_CHOICES: Final = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def parse(body: bytes, schema: type[Q]) -> Q:
    """Read a body.

    Raises:
        NotJsonError: (400) it is not JSON in UTF-8.
        InvalidRequestError: (400) it is not this API, or asks for what cannot be done.
    """
    fields = read_fields(body)
    extras = EXTRAS if schema is MessagesRequest else _COUNT_EXTRAS
    kept = dict(without_extras(fields, frozenset(schema.__struct_fields__), extras, lambda name: name))
    if isinstance(config := kept.get("output_config"), dict):
        known = frozenset(OutputConfig.__struct_fields__)
        kept["output_config"] = nested("output_config", cast("dict[str, object]", config), known, _OF_CONFIG)
    if isinstance(system := kept.get("system"), list):
        kept["system"] = _blocks("system", cast("list[object]", system), ("text",))
    if isinstance(tools := kept.get("tools"), list):
        offered = kept_tools(cast("list[object]", tools), kept.get("tool_choice"))
        kept["tools"] = [_tool(f"tools[{at}]", tool) for at, tool in offered]
    if isinstance(turns := kept.get("messages"), list):
        kept["messages"] = _turns(cast("list[object]", turns))
    return convert(kept, {}, schema)


def _turns(given: list[object]) -> list[object]:
    if len(given) > MOST_MESSAGES:
        text = f"messages: at most {MOST_MESSAGES} are meant, not {len(given)}"
        raise InvalidRequestError(text, param="messages")
    return [_turn(f"messages[{at}]", turn) for at, turn in enumerate(given)]


def _turn(path: str, given: object) -> object:
    if not isinstance(given, dict):
        return given
    turn = nested(path, cast("dict[str, object]", given), frozenset(Turn.__struct_fields__), _OF_TURNS)
    content = turn.get("content")
    if not isinstance(content, list):
        return turn
    kinds = _KINDS.get(str(turn.get("role")), ("text",))
    return {**turn, "content": _blocks(f"{path}.content", cast("list[object]", content), kinds)}


def _tool(path: str, given: object) -> object:
    if not isinstance(given, dict):
        return given
    known = frozenset(ToolDefinition.__struct_fields__)
    return nested(path, cast("dict[str, object]", given), known, _OF_TOOLS)


def _blocks(path: str, given: list[object], kinds: Collection[str]) -> list[object]:
    blocks = [_block(f"{path}[{at}]", block, kinds) for at, block in enumerate(given)]
    return [block for block in blocks if block is not None]


def _block(path: str, given: object, kinds: Collection[str]) -> object:
    """Take a block of some kinds; None for what a model thought; another kind is named before its fields are."""
    if not isinstance(given, dict):
        return given
    block: dict[str, Any] = cast("dict[str, Any]", given)
    kind = block.get("type")
    if kind in _THOUGHTS:
        return None
    if kind is None:
        raise InvalidRequestError(f"you must provide {path}.type", param=f"{path}.type", code="missing")
    if kind not in kinds:
        text = f"{path}.type: blocks of type {show(kind)} are not understood there, only {' and '.join(kinds)}"
        raise InvalidRequestError(text, param=path, code=UNSUPPORTED)
    kept = nested(path, block, _BLOCKS[kind], _BESIDE)
    if kind == "tool_result" and isinstance(content := kept.get("content"), list):
        return {**kept, "content": _blocks(f"{path}.content", cast("list[object]", content), ("text",))}
    return kept


# --- tasks ------------------------------------------------------------------------------------------------------------


def message_task(request: MessagesRequest) -> Generate:
    """Turn a request into the task that engines get. Raises InvalidRequestError."""
    given = {
        "top_p": None if request.top_p is None else max(request.top_p, LEAST_TOP_P),
        "top_k": request.top_k,
        "stop": stops_of("stop_sequences", request.stop_sequences),
        "seed": None if request.seed is None else request.seed % 2**63,
    }
    rest: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return Generate(
        messages=_conversation(request),
        max_tokens=request.max_tokens,
        temperature=DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        grammar=_grammar(request.output_config),
        rendering=_rendering(request),
        **_tools(request),
        **rest,
    )


def count_task(request: CountRequest) -> Generate:
    """Turn a request whose tokens are to be counted into the least that makes a node tell: an answer of one token."""
    tools = {"tools": _tools(request).get("tools", [])}
    rendering = _rendering(request)
    return Generate(messages=_conversation(request), max_tokens=1, temperature=0.0, rendering=rendering, **tools)


def _tools(request: CountRequest) -> dict[str, Any]:
    """Return what a task says of tools; nothing without any, for nodes from before. Raises InvalidRequestError."""
    choice = request.tool_choice or ToolChoice(type="auto")
    if (choice.type == "tool") is (choice.name is None):
        text = "tool_choice.name: it belongs to the type tool, which needs it"
        raise InvalidRequestError(text, param="tool_choice.name")
    if not request.tools:
        if choice.type in ("any", "tool"):
            raise InvalidRequestError("tool_choice: there are no tools that could be called", param="tool_choice")
        return {}
    tools = [
        Tool(name=tool.name, description=tool.description or "", parameters=encode(tool.input_schema).decode())
        for tool in request.tools
    ]
    said: dict[str, Any] = {"tools": tools, "tool_choice": _CHOICES[choice.type], "tool_name": choice.name}
    return said | {"parallel_tool_calls": not choice.disable_parallel_tool_use}


def _rendering(request: CountRequest) -> Rendering | None:
    """Have an answer gone on with that the last turn begins. Raises InvalidRequestError."""
    last = request.messages[-1]
    if last.role != "assistant":
        return None
    if _of_kind(last, ToolUseBlock):
        at = f"messages[{len(request.messages) - 1}]"
        raise InvalidRequestError(f"{at}: behind a call comes a turn with its tool_result", param=at)
    return Rendering(continue_final_message=True)


def _conversation(request: CountRequest) -> list[ChatMessage]:
    names = {block.id: block.name for turn in request.messages for block in _of_kind(turn, ToolUseBlock)}
    turns = [message for turn in request.messages for message in _messages(turn, names)]
    return [ChatMessage(role="system", content=_text(request.system)), *turns] if request.system else turns


def _messages(turn: Turn, names: Mapping[str, str]) -> Iterator[ChatMessage]:
    """Yield what calls came to as turns of their own, then what else a turn says; `names` of tools by call."""
    results = _of_kind(turn, ToolResultBlock)
    for one in results:
        name = names.get(one.tool_use_id)
        yield ChatMessage(role="tool", content=_text(one.content), tool_call_id=one.tool_use_id, name=name)
    calls = [
        ToolCall(id=block.id, name=block.name, arguments=encode(block.input).decode())
        for block in _of_kind(turn, ToolUseBlock)
    ]
    text = _text(turn.content)
    if text or not results:
        yield ChatMessage(role=turn.role, content=text, tool_calls=calls)


B = TypeVar("B", ToolUseBlock, ToolResultBlock)


def _of_kind(turn: Turn, kind: type[B]) -> list[B]:
    return [] if isinstance(turn.content, str) else [block for block in turn.content if isinstance(block, kind)]


def _text(content: str | Sequence[TextBlock | ToolUseBlock | ToolResultBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block.text for block in content if isinstance(block, TextBlock))


def _grammar(config: OutputConfig | None) -> Grammar | None:
    if config is None or config.format is None:
        return None
    return schema_grammar("output_config.format.schema", config.format.schema)
