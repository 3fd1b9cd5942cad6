"""What a request asks beyond our schema, set apart for models whose own server may understand it. Pure.

Only nodes that stand before such a server can do that (`protocol/capabilities.py` EXTRA); for every other model
`requests.py` refuses by name what would change the answer. What is set apart travels as `Generate.extra`, unchanged.
"""

from __future__ import annotations

from typing import Any, Final, cast, get_args

import msgspec

from ...protocol.capabilities import GRAMMAR, RENDERING, TOOLS
from ...protocol.tasks import ChatRole, Generate
from ..errors import InvalidRequestError
from ..json_body import encode
from . import grammars, thinking, tools
from .extras import ALIASES, CHAT_EXTRAS, EXTRAS
from .requests import chat_task, parse
from .schema import ChatRequest, CompletionRequest, says_any

_ROLES: Final = frozenset(get_args(ChatRole))
_ELSEWHERE: Final = frozenset({"options", *ALIASES})
"""Names that `requests.py` understands though they stand in no schema."""
RENDERING_NAMES: Final = thinking.NAMES | {"chat_template_kwargs", "add_generation_prompt", "continue_final_message"}
"""The fields of a request that are about how a conversation is rendered."""


def needs_here(body: ChatRequest | CompletionRequest) -> set[str]:
    """Name what a node of ours has to be able to do for a request, though another server may do it in its own way."""
    needs = {TOOLS} if tools.speaks_of_tools(body) else set[str]()
    if says_any(body, grammars.NAMES):
        needs.add(GRAMMAR)
    if says_any(body, RENDERING_NAMES):
        needs.add(RENDERING)
    return needs


def divide(
    given: dict[str, Any], schema: type[ChatRequest | CompletionRequest]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the body without what is not ours, and that.

    Messages that hold more than text are set apart whole; their texts stay, for whoever looks at the prompt.
    """
    extras = EXTRAS | CHAT_EXTRAS if schema is ChatRequest else EXTRAS
    # A server keeps to grammars, calls tools and renders conversations in its own way.
    ours = _ELSEWHERE | frozenset(schema.__struct_fields__) - grammars.NAMES - tools.NAMES - RENDERING_NAMES
    if given.get("tools"):  # without them it says nothing
        extras = {name: extra for name, extra in extras.items() if name != "parallel_tool_calls"}
    extra = {
        name: value
        for name, value in given.items()
        if name not in ours and not (name in extras and extras[name].is_neutral(value, given))
    }
    rest = {name: value for name, value in given.items() if name not in extra}
    messages = list_of(given.get("messages"))
    if schema is ChatRequest and messages is not None and not _are_plain(messages):
        extra["messages"] = messages
        rest["messages"] = [_plain(turn) for turn in messages]
    return rest, extra


def passed_on(chat: dict[str, Any]) -> Generate:
    """Return the task that has a server asked for a chat, with all that is not ours. Raises InvalidRequestError."""
    rest, extra = divide(chat, ChatRequest)
    task = chat_task(parse(encode(rest), ChatRequest))
    return msgspec.structs.replace(task, extra=extra) if extra else task


def _are_plain(messages: list[object]) -> bool:
    try:
        return not tools.speaks_of_tools(parse(encode({"model": "any", "messages": messages}), ChatRequest))
    except InvalidRequestError:
        return False


def _plain(given: object) -> object:
    turn = map_of(given)
    if turn is None:
        return given
    content = turn.get("content")
    parts = list_of(content)
    if parts is not None:
        texts = [part.get("text") for part in map(map_of, parts) if part is not None]
        content = "".join(text for text in texts if isinstance(text, str))
    role = turn.get("role")
    return {"role": role if role in _ROLES else "user", "content": content if isinstance(content, str) else ""}


def map_of(value: object) -> dict[str, object] | None:
    """Return an object of JSON; None where it is something else."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def list_of(value: object) -> list[object] | None:
    """Return a list of JSON; None where it is something else."""
    return cast("list[object]", value) if isinstance(value, list) else None
