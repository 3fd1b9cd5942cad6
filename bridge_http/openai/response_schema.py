"""The bodies of the Responses API as structs: what is obeyed. What else there may be, `response_task.py` says. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...protocol.tasks import ToolName
from .schema import ContentPart, Count, Int64, ReasoningType, Schema, Share, ThoughtTokens

# --- requests --------------------------------------------------------------------------------------------------------


class InputTurn(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message", forbid_unknown_fields=True):
    """An item of the input: one turn. The type may be left out."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class InputCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """An item of the input: a call of a tool, with the JSON of its arguments as text."""

    call_id: ToolName
    name: ToolName
    arguments: str


class InputCallOutput(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """An item of the input: what a call came to."""

    call_id: ToolName
    output: str | list[ContentPart]


class ResponseTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that may be called; `parameters` is the schema of its arguments, `namespace` the group it came in."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    namespace: str | UnsetType = UNSET


class ResponseToolName(msgspec.Struct, frozen=True, kw_only=True):
    """The tool that must be called."""

    type: Literal["function"]
    name: ToolName


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
    input: str | Annotated[list[InputTurn | InputCall | InputCallOutput], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Share | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolName | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningType | None = None
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


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """The answer, as an item that may come back as input."""

    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ThoughtText(msgspec.Struct, frozen=True, kw_only=True):
    """The text of what a model thought."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputThought(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought before it spoke."""

    id: str
    status: Status
    summary: list[str] = []
    content: list[ThoughtText]


class OutputCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a tool; its arguments are JSON as the model wrote it."""

    id: str
    call_id: str
    name: str
    arguments: str
    namespace: str | UnsetType = UNSET
    status: Status = "completed"


OutputItem = OutputMessage | OutputThought | OutputCall


class Incomplete(msgspec.Struct, frozen=True, kw_only=True):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class CachedTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that were known already; no node tells that, so none."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


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
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: bool = False
    temperature: float
    text: TextConfig
    tool_choice: Literal["none", "auto", "required"] | ResponseToolName
    tools: list[ResponseTool]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
