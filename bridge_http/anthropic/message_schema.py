"""The bodies of the Messages API as structs: what is obeyed. What else there may be, `message_task.py` says.

Pure. Names and meanings are Anthropic's; `docs/messages.md` says where this bridge differs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Model = Annotated[str, Meta(min_length=1, max_length=128)]
ToolId = Annotated[str, Meta(min_length=1, max_length=128)]


# --- requests --------------------------------------------------------------------------------------------------------


class TextBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A block of a system prompt or a turn, and of the answer."""

    text: str


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: ToolId
    name: ToolId
    input: dict[str, Any]


class ToolResultBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_result"):
    """What a call came to. That it failed is for its content to say."""

    tool_use_id: ToolId
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """What the model thought before it spoke; nothing is signed here."""

    thinking: str
    signature: str = ""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[TextBlock | ToolUseBlock | ToolResultBlock]


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the model may ask for."""

    name: ToolId
    description: str | None = None
    input_schema: dict[str, Any]


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a tool is called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolId | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON schema that the answer keeps to."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer is to be."""

    format: OutputFormat | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens: what is said before the answer."""

    model: Model
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=4096)]
    system: str | list[TextBlock] | None = None
    output_config: OutputConfig | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """POST /v1/messages. `seed` is ours: the same one gives the same answer."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None


# --- replies ---------------------------------------------------------------------------------------------------------

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the prompt, after the template, and of the answer."""

    input_tokens: int
    output_tokens: int


class MessageReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/messages; without the reason why it is over, the beginning of a streamed one."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/messages/count_tokens."""

    input_tokens: int


class TypedError(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong: a word for programs, and a sentence that begins with the field."""

    type: str
    message: str


class MessagesError(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is no success, and the last event of a stream that failed."""

    type: Literal["error"] = "error"
    error: TypedError
    request_id: str


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One service of the fleet; `max_input_tokens` is its context, where a node has told."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    max_input_tokens: int | None
    max_tokens: int | None = None


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to GET /v1/models in this API: all of them at once."""

    data: list[ModelInfo]
    has_more: bool = False
    first_id: str | None
    last_id: str | None
