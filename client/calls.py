"""Turns the arguments of a method into a `Call` that is ready to be sent: checked, packed, with its request id.

Every mistake of a caller is refused here, with the field named, before anything is sent. No socket, no thread.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, TypedDict, Unpack, cast

import msgspec
from msgspec import Meta

from ..protocol import capabilities, prefix, tasks
from ..protocol import messages as m
from ..protocol.errors import ErrorKind, RequestError, request_error
from ..protocol.limits import MAX_FRAME_BYTES, MAX_TTL_MS
from ..protocol.names import HALF, half_in, is_service, is_unicode
from ..protocol.priority import PriorityClass, number_of
from ..protocol.tasks import ChatMessage, Rendering
from . import arguments, grammars, tools
from .config import ClientConfig
from .queue_place import PLACE_KEY, QueuePlace

Text = str | Sequence[str | Sequence[int]]
_RID_BYTES: Final = 16
_CHANCE_BITS: Final = ~(0xF << 76 | 0x3 << 62)
"""Of a rid, all but version and variant."""
_VERSION_BITS: Final = 7 << 76 | 2 << 62
_task: Final = msgspec.msgpack.Decoder(tasks.Task)
# Seeded by the system once: ids must be unique, not secret, and the system's own generator costs 26 us a request.
_chance: Final = random.Random(secrets.randbits(256))
if sys.platform != "win32":
    os.register_at_fork(after_in_child=lambda: _chance.seed(secrets.randbits(256)))


class CallOptions(TypedDict, total=False):
    """What every verb takes.

    model: Service to ask; else the client's `default_model`, else the only one for the task.
    timeout_s: Longest time without progress: new tokens, a part of the prompt read, a queue that moves.
    total_s: Whole time, however it goes on; None = none.
    priority: interactive, default or bulk, or -100 .. 100, higher first; lower ones have a turn after so many others.
        Above 0 only for keys marked admin or bridge (or as the broker's `max_priority` says).
    idempotent: False = never run twice, not even after a loss; then a loss is an error (`OUTCOME_UNKNOWN`).
    request_id: Your name for it in logs and errors; it does not make two requests one.
    traceparent: W3C trace context, carried along.
    party: For whom you ask, if for many: at a broker they wait in turn, and none fills the queue for the others.
        TENANT or TENANT/USER; of a key marked bridge, and without keys, they are the same at every connection.
    retries: How often a busy or unavailable fleet is asked again; None = as long as there is time.
    on_wait: Called while the request waits in a queue, once a second, with a `QueuePlace`; by whoever reads the answer.
    """

    model: str | None
    timeout_s: float | None
    total_s: float | None
    priority: int | PriorityClass
    idempotent: bool
    request_id: str | None
    traceparent: str | None
    party: str | None
    retries: int | None
    on_wait: Callable[[QueuePlace], None] | None


class GenerateOptions(CallOptions, total=False):
    """What `infer`, `stream` and `submit` take beside the prompt: every field of `tasks.Generate`.

    What the answer keeps to is one of three: `schema`, a JSON Schema as a dict or text, or a type that msgspec or
    pydantic makes one of; `regex`, of the whole answer; `lark`, a grammar.

    `rendering` says how the model's chat template renders the conversation, such as `{"kwargs": {"enable_thinking":
    False}}` or `{"continue_final_message": True}`.

    `tools` and the calls in messages are plain or in OpenAI's shape, and so is a `tool_choice` that names a tool. The
    text of an answer holds its calls as the model wrote them; an `AnswerParser` takes it apart, whole or as it comes.
    """

    messages: Sequence[Mapping[str, Any] | ChatMessage] | None
    token_ids: Sequence[int] | None
    raw: bool
    max_tokens: int | None
    min_tokens: int
    temperature: float | None
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    seed: int | None
    ignore_eos: bool
    logprobs: int | None
    schema: grammars.Schema
    regex: str
    lark: str
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    tool_name: str | None
    parallel_tool_calls: bool
    rendering: Mapping[str, Any] | Rendering
    extra: Mapping[str, Any]


_COMMON: Final = frozenset(CallOptions.__annotations__)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request, ready to be sent. An empty `service` is chosen by the broker."""

    rid: bytes
    request_id: str
    service: str
    task: m.TaskName
    body: bytes
    flags: int
    timeout_s: float
    total_s: float | None = None
    priority: int = 0
    retries: int | None = None
    cost: int = 0
    ext: dict[str, str | int | bool | None] = {}
    on_wait: Callable[[QueuePlace], None] | None = None


class _Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CallOptions as they must be; an error names the field."""

    model: str | None = None
    timeout_s: Annotated[float, Meta(gt=0.0, le=MAX_TTL_MS / 1000)] | None = None
    total_s: Annotated[float, Meta(gt=0.0, le=MAX_TTL_MS / 1000)] | None = None
    priority: m.Priority | PriorityClass = 0
    idempotent: bool = True
    request_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}\Z")] | None = None
    traceparent: m.ExtText | None = None
    party: m.ExtText | None = None
    retries: Annotated[int, Meta(ge=0)] | None = None


def generate(config: ClientConfig, prompt: str | None, *, stream: bool, options: GenerateOptions) -> Call:
    """Build a generation. Raises BadRequestError or TooLargeError with the field named."""
    fields: dict[str, Any] = {"task": "generate", "prompt": prompt}
    common: dict[str, Any] = {}
    for name, value in options.items():
        (common if name in _COMMON else fields)[name] = value
    if not grammars.OPTIONS.isdisjoint(fields):
        fields["grammar"] = grammars.take_from(fields)
    if not tools.OPTIONS.isdisjoint(fields):
        tools.take_tools(fields)
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    messages = fields.get("messages")
    if isinstance(messages, (list, tuple)):
        fields["messages"] = [_plain(message) for message in cast("Sequence[object]", messages)]
    return _make(config, tasks.check(fields, tasks.Generate), common, stream=stream)


def embed(config: ClientConfig, given: Text, *, dimensions: int | None, truncate: bool, options: CallOptions) -> Call:
    """Build an embedding. Raises BadRequestError or TooLargeError with the field named."""
    values = {"task": "embed", "input": given, "dimensions": dimensions, "truncate": truncate}
    return _make(config, tasks.check(values, tasks.Embed), {**options}, stream=False)


def rerank(config: ClientConfig, query: str, documents: Sequence[str], *, truncate: bool, options: CallOptions) -> Call:
    """Build a reranking. Raises BadRequestError or TooLargeError with the field named."""
    values = {"task": "rerank", "query": query, "documents": documents, "truncate": truncate}
    return _make(config, tasks.check(values, tasks.Rerank), {**options}, stream=False)


def classify(config: ClientConfig, given: str | Sequence[str], *, truncate: bool, options: CallOptions) -> Call:
    """Build a classification. Raises BadRequestError or TooLargeError with the field named."""
    values = {"task": "classify", "input": given, "truncate": truncate}
    return _make(config, tasks.check(values, tasks.Classify), {**options}, stream=False)


def make_call(
    config: ClientConfig,
    task: tasks.Task,
    *,
    stream: bool,
    rid: bytes | None = None,
    **options: Unpack[CallOptions],
) -> Call:
    """Build a call from a task made elsewhere. Whatever is in it is checked: constructing a struct checks nothing."""
    _refuse_others(task, rid)
    return _make(config, task, {**options}, stream=stream, rid=rid, is_checked=False)


def _refuse_others(task: object, rid: object) -> None:
    """Look at what annotations promise: not every caller has a type checker."""
    if not isinstance(task, tasks.Task):
        raise arguments.bad("task", f"expected Generate, Embed, Rerank or Classify, got {arguments.kind_of(task)}")
    if rid is not None and not (isinstance(rid, bytes) and len(rid) == _RID_BYTES):
        raise arguments.bad("rid", f"expected {_RID_BYTES} bytes, got {arguments.shown(rid)}")


def _make(
    config: ClientConfig,
    task: tasks.Task,
    common: dict[str, Any],
    *,
    stream: bool,
    rid: bytes | None = None,
    is_checked: bool = True,
) -> Call:
    on_wait = common.pop("on_wait") if "on_wait" in common else None
    options = tasks.check(common, _Checked)
    if options.traceparent is not None and not is_unicode(options.traceparent):
        raise arguments.bad("traceparent", HALF)
    if options.party is not None and not is_unicode(options.party):
        raise arguments.bad("party", HALF)
    rid = rid or new_rid()
    flags = (m.STREAM if stream else 0) | (m.IDEMPOTENT if options.idempotent else 0)
    service, cost = options.model or "", 0
    if isinstance(task, tasks.Generate):  # the default is meant for text; which model embeds is found by its task
        service, cost = service or config.default_model or "", task.max_tokens or 0
        flags |= m.RESUMABLE if task.seed is None else m.RESUMABLE | m.SEEDED
    request_id = options.request_id or rid.hex()
    try:
        return Call(
            rid=rid,
            request_id=request_id,
            service=_checked_service(service),
            task=tasks.task_name(task),
            body=_pack(task, is_checked=is_checked),
            flags=flags,
            timeout_s=options.timeout_s or config.timeout_s,
            total_s=options.total_s or config.total_s,
            priority=number_of(options.priority),
            retries=options.retries,
            cost=cost,
            ext=_ext(options, task, service, config.default_model, stream=stream, hears_place=on_wait is not None),
            on_wait=on_wait,
        )
    except RequestError as error:
        raise request_error(error.kind, error.text, request_id=request_id) from None


def new_rid() -> bytes:
    """Make a UUIDv7 (RFC 9562): ids sort by the time they were made."""
    number = time.time_ns() // 1_000_000 << 80 | _chance.getrandbits(80)
    return (number & _CHANCE_BITS | _VERSION_BITS).to_bytes(16, "big")


def rid_of(text: str) -> bytes | None:
    """Read a rid from hex or UUID form; None if it is neither."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return None


def _plain(message: object) -> object:
    """Turn one message into a map; what is no message is left for the schema to name."""
    if isinstance(message, ChatMessage):
        return tools.plain_turn(msgspec.structs.asdict(message))
    return tools.plain_turn(dict(cast("Mapping[str, Any]", message))) if isinstance(message, Mapping) else message


def _pack(task: tasks.Task, *, is_checked: bool) -> bytes:
    """Pack a task. One of which nothing is known is read back, as its node will."""
    try:
        body = tasks.encode(task)
        if not is_checked:
            _task.decode(body)
    except UnicodeEncodeError:
        raise arguments.bad(half_in(msgspec.to_builtins(task)) or "the text", HALF) from None
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise request_error(ErrorKind.BAD_REQUEST, f"{_culprit(task)}: {error}") from None
    if isinstance(task, tasks.Generate):
        tasks.check_generate(task)
    if len(body) > MAX_FRAME_BYTES:
        text = f"the request has {len(body)} bytes, over the limit of {MAX_FRAME_BYTES}; send a shorter prompt"
        raise request_error(ErrorKind.TOO_LARGE, text)
    return body


def _culprit(task: tasks.Task) -> str:
    """Name the field of a task that cannot be packed."""
    for name in task.__struct_fields__:
        try:
            msgspec.msgpack.encode(getattr(task, name))
        except (TypeError, ValueError, OverflowError, RecursionError):
            return name
    return "the task"


def _checked_service(name: str) -> str:
    if name and not is_service(name):
        raise request_error(
            ErrorKind.NOT_FOUND, f"{arguments.shown(name)} cannot be the name of a model; see `zmqrt models`"
        )
    return name


def _ext(
    options: _Checked, task: tasks.Task, service: str, default_model: str | None, *, stream: bool, hears_place: bool
) -> dict[str, str | int | bool | None]:
    ext: dict[str, str | int | bool | None] = {}
    if not service:  # the broker reads no body: where no model is named it chooses by these
        ext["task"] = tasks.task_name(task)
        if default_model is not None:
            ext["prefer"] = default_model
    if not stream:  # the time of a stream is time without progress anyway
        ext["progress"] = True
    if hears_place:
        ext[PLACE_KEY] = True
    if options.request_id is not None:
        ext["request_id"] = options.request_id
    if options.traceparent is not None:
        ext["traceparent"] = options.traceparent
    if options.party is not None:
        ext["party"] = options.party
    if (hint := prefix.prefix_hint(task)) is not None:
        ext[prefix.EXT_KEY] = hint
    if (needs := tasks.needs_of(task)) is not None:
        ext[capabilities.EXT_KEY] = needs
    return ext
