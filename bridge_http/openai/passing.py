"""What a request asks beyond our schema, set apart for models whose own server may understand it. Pure.

Only nodes that stand before such a server can do that (`protocol/capabilities.py` EXTRA); for every other model
`requests.py` refuses by name what would change the answer. What is set apart travels as `Generate.extra`, unchanged.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from ...protocol.tasks import ChatRole
from ..errors import InvalidRequestError
from ..json_body import encode
from .extras import ALIASES, CHAT_EXTRAS, EXTRAS
from .requests import parse
from .schema import ChatRequest, CompletionRequest

_ROLES: Final = frozenset(get_args(ChatRole))
_ELSEWHERE: Final = frozenset({"options", *ALIASES})
"""Names that `requests.py` understands though they stand in no schema."""


def divide(
    given: dict[str, Any], schema: type[ChatRequest | CompletionRequest]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the body without what is not ours, and that.

    Messages that hold more than text are set apart whole; their texts stay, for whoever looks at the prompt.
    """
    extras = EXTRAS | CHAT_EXTRAS if schema is ChatRequest else EXTRAS
    ours = _ELSEWHERE | frozenset(schema.__struct_fields__)
    extra = {
        name: value
        for name, value in given.items()
        if name not in ours and not (name in extras and extras[name].is_neutral(value, given))
    }
    rest = {name: value for name, value in given.items() if name not in extra}
    messages = given.get("messages")
    if schema is ChatRequest and isinstance(messages, list) and not _are_plain(messages):
        extra["messages"] = messages
        rest["messages"] = [_plain(turn) for turn in messages]
    return rest, extra


def _are_plain(messages: list[Any]) -> bool:
    try:
        parse(encode({"model": "any", "messages": messages}), ChatRequest)
    except InvalidRequestError:
        return False
    return True


def _plain(turn: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(turn, dict):
        return turn
    content = turn.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    role = turn.get("role")
    return {"role": role if role in _ROLES else "user", "content": content if isinstance(content, str) else ""}
