"""Turns the body of a DISPATCH into what an engine can run: checked, encoded, clamped, resumed. Pure, may be slow.

Everything a client may have got wrong is found here, before an engine sees it: an empty or oversized prompt can kill an
engine for good. Runs on any thread; it shares nothing with the core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from ..protocol import tasks, thoughts
from ..protocol.capabilities import GRAMMAR
from ..protocol.errors import ErrorKind, RequestError, request_error, too_long
from ..protocol.limits import MAX_INT
from ..protocol.markup import MARKUP
from ..protocol.messages import Dispatch
from ..protocol.tasks import ChatMessage, Embed, FinishReason, Generate, GenerateChunk, Rendering, TokenLogprobs
from .detokenizer import BegunStream, TextStream
from .engines import ipc
from .engines.base import SamplingParams, TokenRequest
from .grammar_check import compile_grammar
from .tokenizer import NO_MARKS, ByteTokenizer, Tokenizer, TooLongError
from .tool_grammar import compile_calls

T = TypeVar("T")
_MOST_NAME: Final = 100
_PROMPT_END: Final = 16
"""Tokens at the end of a prompt in which it may begin a thought: a mark, and white space."""
LONG_BYTES: Final = 8 << 10
"""From here on a prompt may take more than 5 ms to render and encode."""


class ServiceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the service allows: `context` counts prompt and answer together."""

    service: str
    kind: ipc.Kind = "token"
    task: str
    context: int
    default_max_tokens: int
    vocabulary: int = 0
    """For whole tasks: token ids below it are understood as inputs; 0 = texts alone."""
    resumes: bool = False
    """Whether what has begun elsewhere can go on after its text."""
    capabilities: frozenset[str] = frozenset()
    """What the engine can do beyond its task."""


class PreparedGeneration(msgspec.Struct, kw_only=True, eq=False):
    """A generation ready to run: `text` has stepped over the prefix; `finish_reason` is set if nothing is left."""

    prompt_ids: list[int]
    max_new_tokens: int
    min_new_tokens: int
    stop_ids: frozenset[int]
    ignore_eos: bool
    grammar: str
    sampling: SamplingParams
    text: TextStream
    spell: Callable[[int], bytes]
    """Bytes of a token, for those who asked for log probabilities."""
    ids: list[int] = []
    """Ids delivered before, by another node; the next unit has the number len(ids)."""
    pieces: list[str] = []
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None

    def ends_with(self, token_id: int, position: int) -> bool:
        """Whether this id, as the unit of that number, ends the answer (it has no text then)."""
        return token_id in self.stop_ids and position >= self.min_new_tokens

    def request(self, ticket: int, ids: list[int]) -> TokenRequest:
        """Build what the engine gets, to go on after `ids`."""
        return TokenRequest(
            ticket=ticket,
            prompt_ids=self.prompt_ids,
            resume_ids=list(ids),
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            stop_ids=sorted(self.stop_ids),
            ignore_eos=self.ignore_eos,
            grammar=self.grammar,
            sampling=self.sampling,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTask:
    """A task for a batch or stream engine: its plain values, and how large it is (bytes of input)."""

    values: dict[str, object]
    length: int
    pieces: list[str] = field(default_factory=list[str])
    """Text delivered before, by another node; the next unit has the number len(pieces)."""


class Preprocessor:
    """Turns dispatches into what engines run, for one model. Its tokenizer comes when the model's files are there."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = ByteTokenizer()
        self.has_tokenizer_pool = False
        """Whether prompts of this model are rendered and encoded by processes of their own."""
        self.long_bytes = LONG_BYTES

    def is_long(self, dispatch: Dispatch) -> bool:
        """Whether `run` may take so long that heartbeats and streams would wait for it."""
        return len(dispatch.body) + len(dispatch.resume) >= self.long_bytes

    def needs_pool(self, body: bytes, limits: ServiceLimits) -> bool:
        """Whether a prompt is too long, or its model's template too much of a stranger, to be encoded here.

        Raises:
            RequestError: (400) with the field and the numbers.
        """
        if not self.has_tokenizer_pool or limits.kind != "token":
            return False
        if len(body) >= self.long_bytes:
            return True
        task = _generation(body, limits)
        return task.messages is not None or (task.prompt is not None and not task.raw and self.tokenizer.has_template)

    def run(
        self, dispatch: Dispatch, limits: ServiceLimits, prompt_ids: list[int] | None = None
    ) -> PreparedGeneration | PreparedTask | RequestError:
        """Preprocess a dispatch, on any thread. A fault in a tokenizer fails the request, never the node."""
        try:
            if limits.kind == "token":
                return _prepare_generation(dispatch, self.tokenizer, limits, prompt_ids)
            return _prepare_task(dispatch, limits)
        except RequestError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever a tokenizer raises
            text = f"the request could not be encoded: {type(error).__name__}"
            failure = request_error(ErrorKind.MODEL_RAISED, text)
            failure.__cause__ = error
            return failure


def encode_prompt(body: bytes, tokenizer: Tokenizer, limits: ServiceLimits) -> list[int]:
    """Turn the prompt of a generation into ids, as many as the context has room for.

    Raises:
        RequestError: (400) with the field and the numbers.
    """
    return _encode(_generation(body, limits), tokenizer, limits)


def _prepare_generation(
    dispatch: Dispatch, tokenizer: Tokenizer, limits: ServiceLimits, prompt_ids: list[int] | None = None
) -> PreparedGeneration:
    """Check and encode a generation (unless that is done), and catch up with what was delivered before."""
    task = _generation(dispatch.body, limits)
    if task.extra:
        raise _bad(f"extra: {limits.service} knows no field {min(task.extra)[:_MOST_NAME]!r}; leave it out")
    if prompt_ids is None:
        prompt_ids = _encode(task, tokenizer, limits)
    if not tokenizer.is_known(max(prompt_ids)):  # some tokenizers name one or two more than their model was made with
        raise _bad(f"the prompt holds a token (id {max(prompt_ids)}) that the model's tokenizer names but it lacks")
    if task.logit_bias:
        _check_ids("logit_bias", task.logit_bias, tokenizer)
    room = limits.context - len(prompt_ids)
    max_new = min(task.max_tokens or limits.default_max_tokens, room)
    grammar = _grammar(task)
    eos_ids = frozenset[int]() if task.ignore_eos else tokenizer.eos_ids
    prepared = PreparedGeneration(
        prompt_ids=prompt_ids,
        max_new_tokens=max_new,
        min_new_tokens=min(task.min_tokens, max_new),
        stop_ids=eos_ids | frozenset(task.stop_token_ids),
        ignore_eos=task.ignore_eos,
        grammar=grammar,
        sampling=_sampling(task, dispatch),
        text=_text_stream(task, prompt_ids, tokenizer, grammar),
        spell=tokenizer.spell,
        logprobs=None if task.logprobs is None else [],
    )
    if dispatch.resume_n:
        _catch_up(prepared, dispatch)
    return prepared


def _text_stream(task: Generate, prompt_ids: list[int], tokenizer: Tokenizer, grammar: str) -> TextStream:
    """Make what turns the ids of an answer into text.

    What the prompt has begun of a thought stands before it, so that whoever reads the answer sees where that ends: the
    grammar of an answer knows of no thoughts. JSON that keeps to one is not cut by stop texts: it would say that it is
    whole.
    """
    is_rendered = task.messages is not None or (task.prompt is not None and not task.raw and tokenizer.has_template)
    marks = MARKUP if _calls_tools(task) else thoughts.MARKS if is_rendered else NO_MARKS
    is_json = bool(grammar) and (task.grammar is None or task.grammar.kind == "json_schema")
    stops = () if is_json else task.stop
    begun = "" if grammar or not is_rendered or _goes_on(task) else _begun_thought(prompt_ids, tokenizer)
    if begun:
        return BegunStream(tokenizer.detokenizer(marks), stops, min_tokens=task.min_tokens, begun=begun)
    return TextStream(tokenizer.detokenizer(marks), stops, min_tokens=task.min_tokens)


def _goes_on(task: Generate) -> bool:
    """Whether the answer is the rest of a message, and of what that began."""
    return task.rendering is not None and task.rendering.continue_final_message


def _begun_thought(prompt_ids: list[int], tokenizer: Tokenizer) -> str:
    """Return the mark of the thought that a rendered prompt ends in: behind the last token without a text.

    What stands before that may be the user's, whose turn it ends.
    """
    text, told = tokenizer.detokenizer(thoughts.MARKS), ""
    for token_id in prompt_ids[-_PROMPT_END:]:
        piece = text.step(token_id)
        told = told + piece if piece or tokenizer.spell(token_id) else ""
    return thoughts.begun_by(told)


def _calls_tools(task: Generate) -> bool:
    """Whether the answer may call tools: a model that must not is not told of any."""
    return bool(task.tools) and task.tool_choice != "none"


def _grammar(task: Generate) -> str:
    """Return what the answer keeps to. Raises RequestError (400)."""
    if _calls_tools(task) and (tasks.is_forced(task) or task.grammar is not None):
        return compile_calls(task)
    return "" if task.grammar is None else compile_grammar(task.grammar)


def _prepare_task(dispatch: Dispatch, limits: ServiceLimits) -> PreparedTask:
    """Check a task for an engine that takes whole tasks; few can go on once a part was delivered."""
    if dispatch.resume_n and not limits.resumes:
        text = f"{dispatch.resume_n} units were delivered, and {limits.service} cannot go on from there"
        raise request_error(ErrorKind.NOT_RESUMABLE, text)
    values = tasks.unpack_map(dispatch.body)
    task = tasks.decode_task(dispatch.body)
    _check_task(task, limits)
    if isinstance(task, Embed):
        _check_inputs(task, limits)
    if isinstance(task, Generate):
        values["max_tokens"] = task.max_tokens or limits.default_max_tokens
    pieces = _read_text(dispatch) if dispatch.resume_n else []
    return PreparedTask(values=values, length=len(dispatch.body), pieces=pieces)


def _check_inputs(task: Embed, limits: ServiceLimits) -> None:
    """Refuse token ids that are not the model's: the vectors would be of another text, and nobody would see it."""
    ids = [token_id for text in task.input if not isinstance(text, str) for token_id in text]
    if ids and not limits.vocabulary:
        text = f"input: {limits.service} takes texts, not token ids: it does not say which tokenizer they would be of"
        raise _bad(text)
    if ids and max(ids) >= limits.vocabulary:
        text = f"input: the model has no token {max(ids)}, only those below {limits.vocabulary}"
        text += "; token ids are of each model's own tokenizer, so send texts"
        raise _bad(text)
    if task.truncate_to is not None and not limits.vocabulary:
        text = f"truncate_to: {limits.service} does not say how it counts tokens"
        raise _bad(text)


def _generation(body: bytes, limits: ServiceLimits) -> Generate:
    task = tasks.decode_task(body)
    _check_task(task, limits)
    assert isinstance(task, Generate)
    return task


def _check_task(task: tasks.Task, limits: ServiceLimits) -> None:
    asked = tasks.task_name(task)
    if asked != limits.task:
        raise request_error(ErrorKind.WRONG_TASK, f"{limits.service} serves the task {limits.task!r}, not {asked!r}")
    # Brokers know what needs what, but not those from before: an engine would ignore it, and answer with anything.
    if isinstance(task, Generate) and tasks.needs_grammar(task) and GRAMMAR not in limits.capabilities:
        raise _bad(f"grammar: {limits.service} cannot keep to one, which schemas and required calls of tools need")


def _encode(task: Generate, tokenizer: Tokenizer, limits: ServiceLimits) -> list[int]:
    try:
        ids = _ids_of(task, tokenizer, limits)
    except TooLongError as error:
        raise _too_long(_given(task), f"at least {error.tokens}", limits) from None
    _check_length(_given(task), len(ids), limits)
    return ids


def _ids_of(task: Generate, tokenizer: Tokenizer, limits: ServiceLimits) -> list[int]:
    if task.token_ids is not None:
        _check_length("token_ids", len(task.token_ids), limits)
        _check_ids("token_ids", task.token_ids, tokenizer)
        return task.token_ids
    rendering = task.rendering or Rendering()
    if task.messages is not None:
        tools = task.tools if _calls_tools(task) else ()
        return tokenizer.encode_chat(task.messages, tools, rendering=rendering, most=limits.context)
    assert task.prompt is not None  # checked by tasks.check_generate
    if task.rendering is not None and not tokenizer.has_template:
        raise _bad("rendering: this model has no chat template; leave it out")
    if task.raw or not tokenizer.has_template:
        return tokenizer.encode(task.prompt, is_raw=task.raw, most=limits.context)
    turn = ChatMessage(role="user", content=task.prompt)
    return tokenizer.encode_chat([turn], rendering=rendering, most=limits.context)


def _given(task: Generate) -> str:
    """Name the one field that the prompt came in."""
    return "messages" if task.messages is not None else "prompt" if task.prompt is not None else "token_ids"


def _check_length(given: str, prompt_tokens: int, limits: ServiceLimits) -> None:
    if prompt_tokens < 1:
        text = f"{given}: it is empty: 0 tokens, at least 1 of at most {limits.context - 1} is needed"
        raise _bad(text)
    if prompt_tokens >= limits.context:
        raise _too_long(given, prompt_tokens, limits)


def _too_long(given: str, tokens: int | str, limits: ServiceLimits) -> RequestError:
    what = "messages" if given == "messages" else "prompt"
    return request_error(ErrorKind.CONTEXT_EXCEEDED, too_long(what, tokens, limits.context))


def _check_ids(field: str, ids: Iterable[int], tokenizer: Tokenizer) -> None:
    """Refuse ids beyond the vocabulary: an index error on the device would end the engine process."""
    unknown = next((token for token in ids if not tokenizer.is_known(token)), None)
    if unknown is not None:
        raise _bad(f"{field}: the model has no token {unknown}")


def _bad(text: str) -> RequestError:
    return request_error(ErrorKind.BAD_REQUEST, text)


def _sampling(task: Generate, dispatch: Dispatch) -> SamplingParams:
    return SamplingParams(
        temperature=tasks.DEFAULT_TEMPERATURE if task.temperature is None else task.temperature,
        top_p=task.top_p,
        top_k=task.top_k,
        min_p=task.min_p,
        repetition_penalty=task.repetition_penalty,
        presence_penalty=task.presence_penalty,
        frequency_penalty=task.frequency_penalty,
        logit_bias=task.logit_bias,
        seed=_seed(task, dispatch),
        logprobs=task.logprobs,
    )


def _seed(task: Generate, dispatch: Dispatch) -> int:
    """Take the client's, else the broker's, else what the broker would have made of the rid: equal on every node."""
    if task.seed is not None:
        return task.seed
    given = dispatch.ext.get("seed")
    if isinstance(given, int) and given >= 0:
        return given
    return int.from_bytes(hashlib.sha256(dispatch.rid).digest()[:8], "big") & MAX_INT


_resume_blob = msgspec.msgpack.Decoder(list[bytes])


def _catch_up(prepared: PreparedGeneration, dispatch: Dispatch) -> None:
    """Step over the delivered units and drop what comes of it; find out whether the answer is already over."""
    ids, logprobs = _read_prefix(dispatch)
    for token_id in ids:
        is_stop_id = prepared.ends_with(token_id, len(prepared.ids))
        prepared.pieces.append("" if is_stop_id else prepared.text.step(token_id))
        prepared.ids.append(token_id)
        if is_stop_id or prepared.text.is_stopped:
            prepared.finish_reason = "stop"
            break
    if prepared.logprobs is not None:
        prepared.logprobs += logprobs[: len(prepared.ids)]
    # Of one that keeps to a grammar its engine knows whether it is cut off there, or whole.
    is_cut = len(prepared.ids) >= prepared.max_new_tokens and not prepared.grammar
    if prepared.finish_reason is None and is_cut:
        prepared.finish_reason = "length"


def _read_prefix(dispatch: Dispatch) -> tuple[list[int], list[TokenLogprobs]]:
    """Read the ids that were delivered, and their log probabilities."""
    chunks = _delivered(dispatch)
    ids = [token_id for chunk in chunks for token_id in chunk.ids]
    logprobs = [logprob for chunk in chunks for logprob in chunk.logprobs or []]
    return _first_units(ids, dispatch), logprobs


def _read_text(dispatch: Dispatch) -> list[str]:
    """Read the pieces of text that were delivered."""
    return _first_units([piece for chunk in _delivered(dispatch) for piece in chunk.text], dispatch)


def _delivered(dispatch: Dispatch) -> list[GenerateChunk]:
    """Read the resume blob: an array of the PARTIAL bodies that were delivered, `resume_n` units of them count."""
    try:
        bodies = _resume_blob.decode(dispatch.resume)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _bad(f"the resume blob is not an array of bodies: {error}") from None
    return [tasks.decode(body, GenerateChunk) for body in bodies]


def _first_units(units: list[T], dispatch: Dispatch) -> list[T]:
    if len(units) < dispatch.resume_n:
        raise _bad(f"resume_n is {dispatch.resume_n}, but the resume blob holds {len(units)} units")
    return units[: dispatch.resume_n]
