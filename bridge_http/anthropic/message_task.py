"""From the JSON of a client of the Messages API to a task, or to the words of what is wrong with it. Pure.

What asks for nothing is let pass, and what would change the answer is refused by name: by the rules of the OpenAI
paths, and in their words.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from ...protocol.faults import show
from ...protocol.tasks import ChatMessage, Generate, Grammar
from ..errors import InvalidRequestError
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
from .message_schema import CountRequest, MessagesRequest, OutputConfig, TextBlock, Turn

Q = TypeVar("Q", bound=CountRequest)
_TOOLS: Final = "tools are not understood here"
_THINKING: Final = "no engine here controls how a model thinks"
_SERVERS: Final = "nothing is run or looked up elsewhere"


def _rows(why: str, at: tuple[object, ...] | None, *names: str) -> dict[str, Extra]:
    return dict.fromkeys(names, Extra(why, at))


EXTRAS: Final[dict[str, Extra]] = {
    **_rows("changes no answer", None, "metadata", "service_tier", "cache_control", "inference_geo", "speed", "betas"),
    **_rows("is about the account", None, "user_profile_id", "workspace_id", "diagnostics"),
    **_rows("a history is taken as it comes", ({}, {"edits": []}), "context_management"),
    **_rows(_TOOLS, ([],), "tools"),
    **_rows(_TOOLS, ({"type": "none"}, {"type": "auto"}), "tool_choice"),
    **_rows(_THINKING, ({"type": "disabled"},), "thinking"),
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
_OF_BLOCKS: Final = _rows("models get the text alone", None, "cache_control", "citations", "id", "parsed_output")
_THOUGHTS: Final = ("thinking", "redacted_thinking")
"""Blocks of a history that are left out, as clients of this API are told that they may be."""


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
        kept["system"] = _blocks("system", cast("list[object]", system))
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
    return {**turn, "content": _blocks(f"{path}.content", cast("list[object]", content))}


def _blocks(path: str, given: list[object]) -> list[object]:
    blocks = [_block(f"{path}[{at}]", block) for at, block in enumerate(given)]
    return [block for block in blocks if block is not None]


def _block(path: str, given: object) -> object:
    """Take a block of type text; None for what a model thought; another kind is named before its fields are."""
    if not isinstance(given, dict):
        return given
    block: dict[str, Any] = cast("dict[str, Any]", given)
    kind = block.get("type")
    if kind in _THOUGHTS:
        return None
    if isinstance(kind, str) and kind != "text":
        text = f"{path}.type: blocks of type {show(kind)} are not understood, only text"
        raise InvalidRequestError(text, param=path, code=UNSUPPORTED)
    if kind is None:
        raise InvalidRequestError(f"you must provide {path}.type", param=f"{path}.type", code="missing")
    return nested(path, block, frozenset(TextBlock.__struct_fields__), _OF_BLOCKS)


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
        **rest,
    )


def count_task(request: CountRequest) -> Generate:
    """Turn a request whose tokens are to be counted into the least that makes a node tell: an answer of one token."""
    return Generate(messages=_conversation(request), max_tokens=1, temperature=0.0)


def _conversation(request: CountRequest) -> list[ChatMessage]:
    if request.messages[-1].role == "assistant":
        at = f"messages[{len(request.messages) - 1}]"
        text = f"{at}.role: the last turn is to be the user's; an answer is not gone on with here"
        raise InvalidRequestError(text, param=f"{at}.role", code=UNSUPPORTED)
    turns = [ChatMessage(role=turn.role, content=_text(turn.content)) for turn in request.messages]
    return [ChatMessage(role="system", content=_text(request.system)), *turns] if request.system else turns


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _grammar(config: OutputConfig | None) -> Grammar | None:
    if config is None or config.format is None:
        return None
    return schema_grammar("output_config.format.schema", config.format.schema)
