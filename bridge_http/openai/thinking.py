"""Whether and how hard a model is to think, in the words of many servers, made values for its chat template. Pure.

Templates read `enable_thinking` (Qwen, GLM, SmolLM), `thinking` (DeepSeek, Granite, Kimi) or `reasoning_effort`
(gpt-oss); one that reads none of them renders the same without. `chat_template_kwargs` say it more exactly, and win.
"""

from __future__ import annotations

from typing import Final

from .schema import ChatRequest, ReasoningType, says_any

NAMES: Final = frozenset({"reasoning_effort", "reasoning", "thinking", "think", "enable_thinking"})
"""The fields of a chat that are about this."""
_OFF: Final = "none"


def thinking_kwargs(request: ChatRequest) -> dict[str, object]:
    """Return what the template is given; nothing where nothing is said. Of several words the most exact one counts."""
    if not says_any(request, NAMES):
        return {}
    asked = request.reasoning or ReasoningType()
    word = request.think if isinstance(request.think, str) else None
    effort = request.reasoning_effort or asked.effort or word
    is_asked = request.thinking is not None and request.thinking.type in ("enabled", "disabled")
    each = (
        request.enable_thinking,
        asked.enabled,
        request.thinking.type == "enabled" if request.thinking is not None and is_asked else None,
        request.think if isinstance(request.think, bool) else None,
    )
    return _kwargs(effort, next((one for one in each if one is not None), None))


def reasoning_kwargs(asked: ReasoningType | None) -> dict[str, object]:
    """Return the same of `reasoning` alone."""
    return {} if asked is None else _kwargs(asked.effort, asked.enabled)


def _kwargs(effort: str | None, is_on: bool | None) -> dict[str, object]:  # noqa: FBT001 - three answers
    if effort == _OFF and is_on is None:
        is_on = False
    given: dict[str, object] = {} if effort is None else {"reasoning_effort": effort}
    return given if is_on is None else {**given, "enable_thinking": is_on, "thinking": is_on}
