"""The bodies of the OpenAI API as structs: what is obeyed. What is let pass or refused beside it, `extras.py` says.

Pure. Names and meanings are OpenAI's; `docs/openai.md` says where this bridge differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Number = Annotated[float, Meta(ge=-2.0, le=2.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
ToolName = Annotated[str, Meta(min_length=1, max_length=128)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Effort = Annotated[str, Meta(min_length=1, max_length=32)]
"""How hard to think: a word that the model's template knows."""
Schema = dict[str, Any] | bool
"""A JSON schema."""
Texts = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
"""A text, or the token ids of one; or a list of several of either kind."""


def says_any(request: msgspec.Struct, names: frozenset[str]) -> bool:
    """Whether a request says anything in these fields, of which it need not have all: most requests say little."""
    values = _values_of(type(request), names)(request)
    return values.count(None) < len(values)


@cache
def _values_of(schema: type[msgspec.Struct], names: frozenset[str]) -> Callable[[msgspec.Struct], tuple[object, ...]]:
    known = sorted(names & set(schema.__struct_fields__))
    if not known:
        return lambda _: ()
    return attrgetter(known[0], *known)  # of one name it would return no tuple


# --- requests --------------------------------------------------------------------------------------------------------


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a message; only text is understood."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """Which function is called, and the JSON of its arguments as the model wrote it."""

    name: ToolName
    arguments: str


class MessageCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool."""

    id: ToolName
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn; `tool_call_id` and `name` say which call the turn of a tool answers."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: Annotated[list[MessageCall], Meta(max_length=128)] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that may be called; `parameters` is the schema of its arguments."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool; only functions are understood."""

    type: Literal["function"]
    function: FunctionTool


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    """Which function is meant."""

    name: ToolName


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a stream is sent; of no meaning without one. Padding against eavesdroppers is let pass: there is none.

    `continuous_usage_stats` is vLLM's: the usage so far in each event.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    """A schema and what it is called; it is always kept to, whatever `strict` says."""

    name: str = ""
    description: str | None = None
    schema: Schema | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer is to be. `schema` beside `json_object` is llama.cpp's; `pattern` of a regex is Fireworks'."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchemaFormat | None = None
    schema: Schema | None = None
    pattern: str | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same as vLLM has it: one of them."""

    json: Schema | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    disable_any_whitespace: bool | None = None


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of generation share.

    The second group is ours, under the names that open engines use. Null means "not said", and
    so does -1 where a whole number stands. The third is one thing in the words of many servers: what the answer is to
    keep to (`grammars.py`).
    """

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Share | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    stop: str | list[str] | None = None
    seed: Int64 | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_json_object: bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: Schema | str | None = None
    regex: str | None = None
    ebnf: str | None = None
    format: Schema | str | None = None


class ThinkingType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a model thinks, as DeepSeek, GLM and Kimi say it; `adaptive` and `auto` leave it to the model.

    `budget_tokens` is a target in the words of Anthropic, whose clients send it here too: let pass.
    """

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: Annotated[int, Meta(ge=0)] | None = None


class ReasoningType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same, as OpenRouter and the Responses API say it; thoughts are always told, and never summed up."""

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: Literal[False] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ChatRequest(Generation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning: ReasoningType | None = None
    thinking: ThinkingType | None = None
    think: bool | Effort | None = None
    enable_thinking: bool | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    tools: Annotated[list[ChatTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionRequest(Generation, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions: plain text to go on from, or several."""

    prompt: Texts
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings.

    `truncate_prompt_tokens` is vLLM's: so many tokens of each input, -1 = as many as the model takes.
    """

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65536)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None


# --- replies ---------------------------------------------------------------------------------------------------------


class ThoughtTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of an answer that the model thought, and did not say."""

    reasoning_tokens: int = 0


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the prompt, after the template, and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: ThoughtTokens | UnsetType = UNSET


class Likely(msgspec.Struct, frozen=True, kw_only=True):
    """One token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """The token that came, and the likeliest ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Likely]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log probabilities of an answer, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """The same in the older form: four lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ReplyMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; what the model thought before it under the names of several servers."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MessageCall] | UnsetType = UNSET


FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the choices."""

    index: int = 0
    message: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: TokenUsage


class CallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool, whole; `index` is its place among those of its answer."""

    index: int
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of a choice."""

    index: int = 0
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat; the last one with `include_usage` has no choice, and the usage."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: TokenUsage | UnsetType | None = UNSET


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the choices, or what is new of it."""

    index: int = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/completions, and each event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: TokenUsage | UnsetType | None = UNSET


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/embeddings: one vector for each input, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One service of the fleet."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "zmqrt"
    capabilities: list[str] = []
    """What a node of it can do beyond its task."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong; `param` names the field, `code` is a word for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is no success, and the last event of a stream that failed."""

    error: ErrorBody
