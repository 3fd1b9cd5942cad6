"""The bodies of the Responses API as structs: what is obeyed. What else there may be, `response_task.py` says. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .schema import ContentPart, Count, Int64, Schema, Share

# --- requests --------------------------------------------------------------------------------------------------------


class InputTurn(msgspec.Struct, frozen=True, kw_only=True):
    """An item of the input: one turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the answer is to be; a schema is always kept to, whatever `strict` says."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: Schema | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer is to be."""

    format: TextFormat | None = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/responses. `metadata` is told again in the answer. `seed` is ours: the same one, the same answer."""

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    input: str | Annotated[list[InputTurn], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Share | None = None
    text: TextConfig | None = None
    metadata: dict[str, str] | None = None
    seed: Int64 | None = None
    stream: bool | None = None


# --- replies ---------------------------------------------------------------------------------------------------------

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[str] = []
    logprobs: list[str] = []


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, as an item that may come back as input."""

    id: str
    type: Literal["message"] = "message"
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class Incomplete(msgspec.Struct, frozen=True, kw_only=True):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class CachedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that were known already; no node tells that, so none."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class ThoughtTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens in which a model thought; they are not told apart."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the prompt, after the template, and of the answer."""

    input_tokens: int
    input_tokens_details: CachedTokens = CachedTokens()
    output_tokens: int
    output_tokens_details: ThoughtTokens = ThoughtTokens()
    total_tokens: int


class ResponseReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/responses, and what begins and ends a streamed one; much of it repeats what was asked."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage] = []
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: bool = False
    temperature: float
    text: TextConfig
    tool_choice: Literal["auto"] = "auto"
    tools: list[dict[str, Any]] = []
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
