"""The bodies of requests and replies: one schema for the native client, /infer, the OpenAI paths and the engines.

Bodies are MessagePack maps, opaque to the broker. They are unpacked by `msgpack` under hard limits, then checked
against the structs below (tasks too short to be over a limit: in one step). Unknown fields are refused, so that a
misspelt parameter never silently changes an answer.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar, cast, get_args

import msgpack
import msgspec
from msgspec import Meta

from .capabilities import EXTRA, GRAMMAR, LOGPROBS, RENDERING, TOKEN_IDS, TOOLS
from .errors import ErrorKind, RequestError, request_error
from .faults import find_fault, show
from .limits import (
    BODY_MAX_ARRAY,
    BODY_MAX_BIN_BYTES,
    BODY_MAX_MAP,
    BODY_MAX_STR_BYTES,
    MAX_GRAMMAR_CHARS,
    MAX_INT,
    MAX_TEMPLATE_NAMES,
    MAX_TOOLS,
)
from .messages import TaskName
from .names import HALF, half_in
from .template_kwargs import kwargs_fault

FinishReason = Literal["stop", "length", "cancelled", "error"]
ChatRole = Literal["system", "user", "assistant", "tool", "developer"]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
StopString = Annotated[str, Meta(min_length=1, max_length=512)]
ToolName = Annotated[str, Meta(min_length=1, max_length=128)]
Seed = Annotated[int, Meta(ge=0, le=MAX_INT)]

DEFAULT_TEMPERATURE = 0.7
DEFAULT_MAX_TOKENS = 1024


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all bodies share: a map on the wire, defaults left out, unknown fields refused."""


class ToolCall(_Body, frozen=True):
    """A function that a model wants to be called; its arguments are JSON as the model wrote it, valid or not."""

    id: ToolName
    name: ToolName
    arguments: str = "{}"


class ChatMessage(_Body, frozen=True):
    """One turn of a conversation; content may be empty beside `tool_calls`.

    `tool_call_id`: which call a turn of a tool answers. `name`: of the tool, or of who speaks, where templates tell.
    """

    role: ChatRole
    content: str
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] = []
    tool_call_id: ToolName | None = None
    name: ToolName | None = None


class Tool(_Body, frozen=True):
    """A function that a model may ask to be called: `parameters` is the JSON schema of its arguments, as text.

    They keep to it where a call is required.
    """

    name: ToolName
    description: str = ""
    parameters: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)] = ""


class Grammar(_Body, frozen=True):
    """What an answer keeps to: the text of a JSON schema, a regular expression (of the whole answer), or Lark."""

    kind: Literal["json_schema", "regex", "lark"]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


class Rendering(_Body, frozen=True):
    """How the model's chat template renders a conversation; without one as usual, up to where an answer begins.

    Attributes:
        kwargs: JSON values by the names that the template reads them by (`enable_thinking`, `documents`, …).
        add_generation_prompt: False = nothing behind the last turn: the model writes whatever turn comes next.
        continue_final_message: The last turn has no end, and is gone on with; nothing is added behind it then.
    """

    kwargs: Annotated[dict[str, Any], Meta(max_length=MAX_TEMPLATE_NAMES)] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class Generate(_Body, frozen=True, tag="generate", tag_field="task"):
    """Generate text: exactly one of `prompt`, `messages`, `token_ids`.

    Attributes:
        prompt: One user message through the model's chat template; plain completion if `raw`.
        max_tokens: New tokens at most; None = the worker's default. Clamped to the room left in the context.
        temperature: None = 0.7; below 1e-5 greedy.
        seed: 0 .. 2**63-1; None = derived from the request id, and told in the result.
        logprobs: How many alternatives to report per token; None = none at all.
        grammar: What the answer keeps to, and where it ends; cut short it is whole only with `finish_reason` "stop".
        tools: What the model may ask for; its answer then holds the markup of its calls (`protocol/markup.py`).
        tool_choice: "required": the answer is at least one call, of `tool_name` alone if that is given.
        parallel_tool_calls: False = one call an answer; kept to where calls are forced.
        rendering: How the chat template renders `messages` or `prompt`; refused beside what never sees one.
        extra: Fields of another server's API, passed on as they are by engines that stand before one; others refuse it.
    """

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)] | None = None
    token_ids: list[TokenId] | None = None
    raw: bool = False
    max_tokens: MaxTokens | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    temperature: Temperature | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)] = {}
    stop: Annotated[list[StopString], Meta(max_length=16)] = []
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] = []
    seed: Seed | None = None
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    grammar: Grammar | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: Literal["none", "auto", "required"] = "auto"
    tool_name: ToolName | None = None
    parallel_tool_calls: bool = True
    rendering: Rendering | None = None
    extra: Annotated[dict[str, Any], Meta(max_length=64)] = {}


class Embed(_Body, frozen=True, tag="embed", tag_field="task"):
    """Embed text: one string, several, or token ids. Too long is an error unless `truncate`, which cuts off the end.

    `truncate_to`: so many tokens of each input, where the model holds so many; for models that tell their vocabulary.
    """

    input: str | Annotated[list[str | list[TokenId]], Meta(min_length=1, max_length=2048)]
    dimensions: Annotated[int, Meta(ge=1, le=65536)] | None = None
    truncate: bool = False
    truncate_to: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class Rerank(_Body, frozen=True, tag="rerank", tag_field="task"):
    """Judge how well each document answers a query. Too long is an error unless `truncate`, which cuts documents.

    All of them are judged and none is left out: how many of the best are wanted is for whoever reads the scores.
    """

    query: str
    documents: Annotated[list[str], Meta(min_length=1, max_length=2048)]
    truncate: bool = False


class Classify(_Body, frozen=True, tag="classify", tag_field="task"):
    """Tell which of its labels a model gives to a text, or to each of several."""

    input: str | Annotated[list[str], Meta(min_length=1, max_length=2048)]
    truncate: bool = False


Task = Generate | Embed | Rerank | Classify


class Usage(_Body, frozen=True, omit_defaults=False):
    """Tokens after the template, and tokens sampled (EOS included); the same whether or not the stream was resumed."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


class TokenLogprobs(_Body, frozen=True):
    """One sampled token: its log probability, the likeliest tokens by id, and the bytes of all of them.

    Bytes, since a token may be half a character; none for special tokens.
    """

    logprob: float
    top: dict[int, float] = {}
    spelled: dict[int, bytes] = {}


class GenerateChunk(_Body, frozen=True, omit_defaults=False):
    """Body of PARTIAL: new token ids, one piece of text per id (empty while it is held back).

    Units of a generation are tokens: `n` of the header equals `len(ids)`.
    """

    ids: list[int]
    text: list[str]
    logprobs: list[TokenLogprobs] | None = None


class GenerateResult(_Body, frozen=True):
    """Body of FINAL for Generate.

    Attributes:
        tail: Text held back by the last PARTIAL (a stream's client appends it to what it has).
        text, ids: The whole result; filled for unary requests only (a stream's client has it already).
        revision: Weights, dtype and engine that made it.
    """

    finish_reason: FinishReason
    usage: Usage
    seed: int
    model: str
    revision: str
    tail: str = ""
    text: str | None = None
    ids: list[int] | None = None
    logprobs: list[TokenLogprobs] | None = None


class Tensor(_Body, frozen=True, omit_defaults=False):
    """Numbers as they lie in memory: `data` is little-endian, row by row."""

    dtype: Literal["f4"]
    shape: list[int]
    data: bytes


class EmbedResult(_Body, frozen=True, omit_defaults=False):
    """Body of FINAL for Embed: one row per input."""

    vectors: Tensor
    usage: Usage
    model: str
    revision: str


class RerankResult(_Body, frozen=True, omit_defaults=False):
    """Body of FINAL for Rerank: a score for each document, in their order; from 0 to 1, and more is more relevant."""

    scores: list[float]
    usage: Usage
    model: str
    revision: str


class ClassifyResult(_Body, frozen=True, omit_defaults=False):
    """Body of FINAL for Classify: the names of all classes, and for each input the probability of each of them."""

    labels: list[str]
    probabilities: list[list[float]]
    usage: Usage
    model: str
    revision: str


B = TypeVar("B", bound=msgspec.Struct)


def unpack_map(body: bytes) -> dict[str, Any]:
    """Unpack a MessagePack map under the limits of limits.py.

    Raises:
        RequestError: (400) it is not MessagePack, not a map, or over a limit.
    """
    try:
        value = msgpack.unpackb(
            body,
            use_list=True,
            raw=False,
            strict_map_key=False,  # logit_bias has integer keys; the schema checks the rest
            max_str_len=BODY_MAX_STR_BYTES,
            max_bin_len=BODY_MAX_BIN_BYTES,
            max_array_len=BODY_MAX_ARRAY,
            max_map_len=BODY_MAX_MAP,
            max_ext_len=0,
        )
    except (ValueError, UnicodeDecodeError, msgpack.UnpackException, RecursionError, TypeError) as error:
        raise _bad(f"the body is not valid MessagePack: {str(error) or type(error).__name__}") from None
    if not isinstance(value, dict):
        raise _bad("the body is not a map")
    return cast("dict[str, Any]", value)


def check(values: dict[str, Any], schema: type[B]) -> B:
    """Check a map against a schema. Raises RequestError (400) with the field named."""
    try:
        return msgspec.convert(values, schema, strict=True, str_keys=False)
    except UnicodeEncodeError:
        raise _bad(f"{half_in(values) or 'the text'}: {HALF}") from None
    except msgspec.ValidationError as error:
        raise _bad(str(find_fault(error, values, schema))) from None
    except RecursionError:
        raise _bad("the body is nested too deeply") from None


def decode(body: bytes, schema: type[B]) -> B:
    """Unpack and check a body. Raises RequestError (400) with the field named."""
    return check(unpack_map(body), schema)


def decode_answer(body: bytes, schema: type[B]) -> B:
    """Read what a node answers, in one step; what does not fit is read again as any body, which has words for it.

    Raises:
        RequestError: (400) with the field named.
    """
    decoder: msgspec.msgpack.Decoder[B] = _answer_decoder(schema)
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return decode(body, schema)


@cache
def _answer_decoder(schema: type[B]) -> msgspec.msgpack.Decoder[B]:
    return msgspec.msgpack.Decoder(schema)


def decode_task(body: bytes) -> Task:
    """Read the body of a REQUEST or DISPATCH.

    Raises:
        RequestError: (400) with the field named.
    """
    task = _read_short(body) if len(body) <= _SHORT_BYTES else None
    if task is not None:
        return task
    values = unpack_map(body)
    match values.setdefault("task", "generate"):
        case "embed":
            return check(values, Embed)
        case "rerank":
            return check(values, Rerank)
        case "classify":
            return check(values, Classify)
        case "generate":
            task = check(values, Generate)
            check_generate(task)
            return task
        case other:
            raise _bad(f"task: one of {', '.join(get_args(TaskName))} is meant, not {show(other)}")


_SHORT_BYTES: Final = BODY_MAX_MAP
"""No array, map or text of so few bytes is over a limit."""
_any_task: Final[msgspec.msgpack.Decoder[Task]] = msgspec.msgpack.Decoder(Task)


def _read_short(body: bytes) -> Task | None:
    """Read a task in one step; None: it has to be read as any body, which has words for what does not fit."""
    try:
        task = _any_task.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(task, Generate):
        if task.extra or task.rendering is not None:  # of any type, also such as only the other reader refuses
            return None
        check_generate(task)
    return task


def task_name(task: Task) -> TaskName:
    """Name what a body asks for, as offers and messages do."""
    match task:
        case Generate():
            return "generate"
        case Embed():
            return "embed"
        case Rerank():
            return "rerank"
        case Classify():
            return "classify"


def needs_of(task: Task) -> str | None:
    """Return what a node has to be able to do for it, as `ext["needs"]` says it; None: what every node can."""
    if not isinstance(task, Generate):
        return None
    names: list[str] = []
    if task.logprobs is not None:
        names.append(LOGPROBS)
    if task.token_ids is not None:
        names.append(TOKEN_IDS)
    if needs_grammar(task):
        names.append(GRAMMAR)
    if task.tools or (task.messages is not None and any(map(_has_calls, task.messages))):
        names.append(TOOLS)
    if task.rendering is not None:
        names.append(RENDERING)
    if task.extra:
        names.append(EXTRA)
    return ",".join(names) if names else None


def needs_grammar(task: Generate) -> bool:
    """Whether its answer is to keep to a grammar: one of its own, or that of calls which must be."""
    return task.grammar is not None or is_forced(task)


def _has_calls(turn: ChatMessage) -> bool:
    return bool(turn.tool_calls or turn.tool_call_id or turn.name)


def is_forced(task: Generate) -> bool:
    """Whether a grammar makes the answer of a task a call of a tool."""
    return bool(task.tools) and task.tool_choice == "required"


def check_generate(task: Generate) -> None:
    """Check what a schema cannot say. Raises RequestError (400)."""
    if (task.prompt is not None) + (task.messages is not None) + (task.token_ids is not None) != 1:
        given = [name for name in ("prompt", "messages", "token_ids") if getattr(task, name) is not None]
        raise _bad(f"exactly one of prompt, messages and token_ids is needed, not {' and '.join(given) or 'none'}")
    if task.max_tokens is not None and task.min_tokens > task.max_tokens:
        raise _bad(f"min_tokens ({task.min_tokens}) is above max_tokens ({task.max_tokens})")
    if task.min_tokens and (task.grammar is not None or is_forced(task)):
        raise _bad("min_tokens: an answer that keeps to a grammar ends where that ends; leave it out")
    if task.tools or task.tool_choice != "auto" or task.tool_name is not None:
        _check_tools(task)
    if task.rendering is not None:
        _check_rendering(task, task.rendering)


def _check_rendering(task: Generate, rendering: Rendering) -> None:
    if task.token_ids is not None or task.raw:
        raise _bad("rendering: no chat template sees token ids or a raw prompt; send messages, or leave it out")
    if rendering.continue_final_message and task.messages is None:
        raise _bad("rendering: a prompt is the user's, and no answer to go on with; send messages")
    if fault := kwargs_fault(rendering.kwargs):
        raise _bad(f"rendering.kwargs: {fault}")


def _check_tools(task: Generate) -> None:
    """Refuse what cannot be meant of tools."""
    names = [tool.name for tool in task.tools]
    if len(set(names)) < len(names):
        raise _bad("tools: two of them have one name")
    for tool in task.tools:
        _check_parameters(tool)
    if task.tool_choice == "required" and not names:
        raise _bad("tool_choice: a call is required, and there are no tools")
    if task.tool_name is not None and (task.tool_name not in names or task.tool_choice != "required"):
        raise _bad(f"tool_name: {show(task.tool_name)} is none of the tools, or tool_choice is not required")
    if names and task.messages is None:
        raise _bad("tools: they are told to the model in a conversation; send messages")
    if names and task.grammar is not None and task.grammar.kind != "json_schema" and task.tool_choice == "auto":
        raise _bad("grammar: beside tools a JSON schema can be kept to; leave the tools out, or say tool_choice none")


def _check_parameters(tool: Tool) -> None:
    try:
        is_object = not tool.parameters or isinstance(msgspec.json.decode(tool.parameters), dict)
    except (msgspec.DecodeError, RecursionError):
        is_object = False
    if not is_object:
        raise _bad(f"tools: {show(tool.name)}: parameters: the text of a JSON schema is meant, an object")


def _bad(text: str) -> RequestError:
    return request_error(ErrorKind.BAD_REQUEST, text)


_encoder = msgspec.msgpack.Encoder()


def encode(body: msgspec.Struct) -> bytes:
    """Pack a body; the bytes are what `msgpack.packb` would make of the same map."""
    return _encoder.encode(body)
