"""OpenAI's API seen by whoever asks: a task as JSON, events as text, a failure as words. Pure.

Servers differ in what they add to that API. What one of them allows stands in `Dialect`, which `openai_server.py` fills
in; nothing here knows an address, a key or a connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

import msgspec

from ...protocol.limits import MAX_ANSWER_TOKENS, MAX_TOOLS
from ...protocol.sanitize import printable
from ...protocol.tasks import DEFAULT_TEMPERATURE
from ...protocol.thoughts import THOUGHTS, begun_by
from .base import AnswerEnd, FinishReason, RequestFailedError

Continuation = Literal["", "continue_final_message", "apply_template"]
"""How an answer of a chat that has begun is gone on with: not at all; by vLLM's field of that name; by having llama.cpp
render the conversation, and completing that text."""

_THOUGHT: Final = "<think>"
_NO_ARGUMENTS: Final = "{}"
_MOST_CALL_CHARS: Final = 1 << 20
"""Of all calls of an answer."""
CHAT: Final = "/chat/completions"
COMPLETIONS: Final = "/completions"
_MOST_LINE_BYTES: Final = 1 << 20
"""Of one event: a thousand times what a server sends that streams."""
_MOST_TOKENS: Final = MAX_ANSWER_TOKENS
_MOST_WORDS: Final = 300
_BUSY: Final = (408, 425, 429, 502, 503, 504, 529)
"""Statuses that say: not now. 500 is the model's own failure, and would come again elsewhere."""
_NO_KEY: Final = (401, 403)
_TOO_LONG: Final = ("context_length_exceeded", "exceed_context_size_error", "maximum context length")
_NEUTRAL: Final[dict[str, object]] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "logit_bias": {},
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "seed": None,
}
"""What is sent under its own name where it says something: strict servers refuse names that they do not know."""
_GREEDY: Final = 1e-5
"""Temperatures below it mean the likeliest token, for which others have 0 alone."""
_OURS: Final = frozenset({"model", "stream", "stream_options", "n", "prompt", "max_tokens", "max_completion_tokens"})
"""Fields that decide what kind of answer comes, or how much is left of it, and so cannot be passed through."""
_KEPT_TO: Final = frozenset(
    {"response_format", "structured_outputs", "json_schema", "regex", "ebnf", "format", "grammar", "structural_tag"}
    | {"guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar"}
)
"""What an answer is to keep to, in the words of many servers."""
_OF_TEMPLATES: Final = ("tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort")
"""What a conversation is rendered with."""
_NO_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What is raised by bytes that are no JSON; the last one by lists in lists without end."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What a server allows, and how it calls the model."""

    model: str
    has_completions: bool = True
    resumes: bool = True
    """Whether an answer that has begun may be gone on with by its text at all."""
    continuation: Continuation = ""
    takes_ids: bool = False
    """Whether a prompt of a completion may be token ids."""
    max_tokens: str = "max_tokens"
    """Name of that field in chats."""
    omit: frozenset[str] = frozenset()
    """Fields that are never sent, whatever was asked."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One POST. With `template_of` this conversation has to be rendered first, and stands before its prompt."""

    path: str
    body: dict[str, object]
    template_of: dict[str, object] | None = None

    def with_template(self, rendered: str) -> Ask:
        """Put the rendered conversation before the text that was delivered; a thought that it begins is in both."""
        delivered = cast("str", self.body["prompt"])
        if mark := begun_by(rendered):
            delivered = delivered.removeprefix(mark)
        return Ask(path=self.path, body={**self.body, "prompt": rendered + delivered})


# --- a task as JSON ---------------------------------------------------------------------------------------------------


def ask_for(task: Mapping[str, Any], dialect: Dialect) -> Ask:
    """Turn a task into what its server is asked. Raises RequestFailedError."""
    if task.get("logprobs") is not None:
        raise RequestFailedError("logprobs: they are not passed on by this engine; leave them out", "bad_request")
    pieces: Sequence[str] = task.get("delivered") or ()
    if pieces and (kept := _kept_to(task.get("extra", {}))):
        words = f"{kept}: the server behind this node would begin anew with it, and not go on"
        raise RequestFailedError(words, "not_resumable")
    prompt, raw = task.get("prompt"), bool(task.get("raw"))
    if task.get("token_ids") is not None or (prompt is not None and raw):
        return _completion(task, "".join(pieces), dialect)
    messages = cast("list[dict[str, object]]", task.get("messages") or [{"role": "user", "content": prompt}])
    given = task.get("extra", {}).get("messages")
    return _chat(task, messages if given is None else given, "".join(pieces), dialect)


def _kept_to(extra: Mapping[str, object]) -> str:
    """Name the field that says what an answer keeps to; nothing without one."""
    return next((name for name in sorted(_KEPT_TO & extra.keys()) if extra[name] not in (None, {"type": "text"})), "")


def _completion(task: Mapping[str, Any], delivered: str, dialect: Dialect) -> Ask:
    if not dialect.has_completions:
        words = "prompt: the server behind this node has no /v1/completions, so only chats can be asked of it"
        raise RequestFailedError(words, "not_resumable" if delivered else "bad_request")
    ids = task.get("token_ids")
    if delivered and (ids is not None or not dialect.resumes):
        raise RequestFailedError("this answer cannot be gone on with by its text", "not_resumable")
    prompt = ids if ids is not None else f"{task['prompt']}{delivered}"
    return Ask(path=COMPLETIONS, body={**_fields(task, dialect, "max_tokens"), "prompt": prompt})


def _chat(task: Mapping[str, Any], messages: list[dict[str, object]], delivered: str, dialect: Dialect) -> Ask:
    if not delivered:
        return Ask(path=CHAT, body={**_fields(task, dialect, dialect.max_tokens), "messages": messages})
    if dialect.resumes and dialect.continuation == "continue_final_message":
        begun = [*messages, {"role": "assistant", "content": delivered}]
        on = {"messages": begun, "add_generation_prompt": False, "continue_final_message": True}
        return Ask(path=CHAT, body={**_fields(task, dialect, dialect.max_tokens), **on})
    if dialect.resumes and dialect.continuation == "apply_template" and dialect.has_completions:
        fields = _fields(task, dialect, "max_tokens")
        extra: dict[str, object] = task.get("extra", {})
        template_of = {"messages": messages} | {name: extra[name] for name in _OF_TEMPLATES if name in extra}
        rest = {name: value for name, value in fields.items() if name not in template_of}
        return Ask(path=COMPLETIONS, body={**rest, "prompt": delivered}, template_of=template_of)
    words = "the server behind this node cannot go on with an answer of a chat that has begun"
    raise RequestFailedError(words, "not_resumable")


def _fields(task: Mapping[str, Any], dialect: Dialect, max_tokens: str) -> dict[str, object]:
    """Return all but the prompt."""
    extra: dict[str, object] = task.get("extra", {})
    refused = sorted(_OURS & extra.keys())
    if refused:
        raise RequestFailedError(f"extra: {', '.join(refused)} cannot be passed through", "bad_request")
    temperature = DEFAULT_TEMPERATURE if task.get("temperature") is None else task["temperature"]
    fields: dict[str, object] = {
        "model": dialect.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        max_tokens: task["max_tokens"] - len(task.get("delivered") or ()),
        "temperature": temperature if temperature >= _GREEDY else 0.0,
    }
    for name, neutral in _NEUTRAL.items():
        value = task.get(name, neutral)
        if value != neutral:
            fields[name] = value
    if "logit_bias" in fields:
        fields["logit_bias"] = {str(token): bias for token, bias in task["logit_bias"].items()}
    fields |= {name: value for name, value in extra.items() if name != "messages"}
    return {name: value for name, value in fields.items() if name not in dialect.omit}


# --- events as text ---------------------------------------------------------------------------------------------------


class _CalledFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct):
    index: int | None = None
    function: _CalledFunction | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    tool_calls: list[_CallDelta] | None = None


class _AnswerChoice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Thoughts(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Counted(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _Thoughts | None = None


class _AnswerEvent(msgspec.Struct):
    choices: list[_AnswerChoice] | None = None
    usage: _Counted | None = None
    error: Any = None


_event: Final = msgspec.json.Decoder(_AnswerEvent)


class AnswerReader:
    """Reads the bytes of one streamed answer, of which some pieces were `delivered` before."""

    def __init__(self, delivered: Sequence[str] = (), key: str = "") -> None:
        self._delivered = len(delivered)
        self._key = key
        self._unread = bytearray()
        self._reason: str | None = None
        self._usage = _Counted()
        self._marks = _Marks("".join(delivered))
        self.has_text = False
        self.is_over = False
        """Whether the answer has said that it is whole. A connection that closes before that has broken."""

    def feed(self, data: bytes) -> list[str]:
        """Take bytes as they come, cut anywhere; return the texts in them, an empty one for an event without any.

        Lines end with a line feed alone: text in JSON may hold other characters that end lines (U+2028).

        Raises:
            RequestFailedError: the server says that it failed, or speaks another language.
        """
        self._unread += data
        lines: list[bytearray] = []
        if b"\n" in data:
            *lines, self._unread = self._unread.split(b"\n")
        if len(self._unread) > _MOST_LINE_BYTES:
            raise RequestFailedError(f"the server sent a line of more than {_MOST_LINE_BYTES} bytes")
        texts = [text for line in lines if line.startswith(b"data:") for text in self._take(line[5:].strip())]
        self.has_text |= any(texts)
        return texts

    def ending(self) -> AnswerEnd:
        """Tell why it is over, and of how many tokens: those that were delivered before belong to the answer."""
        prompt, made = _tokens(self._usage.prompt_tokens), _tokens(self._usage.completion_tokens)
        reason: FinishReason = "length" if self._reason == "length" else "stop"
        details = self._usage.completion_tokens_details
        thoughts = min(_tokens(details.reasoning_tokens), made) if details is not None else 0
        if not self._delivered:
            return AnswerEnd(
                finish_reason=reason, prompt_tokens=prompt, completion_tokens=made, reasoning_tokens=thoughts
            )
        return AnswerEnd(
            finish_reason=reason,
            prompt_tokens=max(0, prompt - self._delivered),
            completion_tokens=made + self._delivered if made else 0,
        )

    def _take(self, data: bytes | bytearray) -> list[str]:
        if data == b"[DONE]":
            self.is_over = True
            return [self._marks.end()]
        try:
            event = _event.decode(data)
        except _NO_JSON as error:
            raise RequestFailedError(f"the server sent an event that is none of this API: {error}") from None
        if event.error is not None:
            raise RequestFailedError(f"the server failed: {words_of(msgspec.json.encode(event.error), self._key)}")
        self._usage = event.usage or self._usage
        return [self._text(choice) for choice in (event.choices or ())[:1]]

    def _text(self, choice: _AnswerChoice) -> str:
        if choice.finish_reason:
            self._reason, self.is_over = choice.finish_reason, True
        if choice.delta is None:
            return (choice.text or "") + (self._marks.end() if self.is_over else "")
        return self._marks.write(choice.delta, is_over=self.is_over)


class _Marks:
    """Writes thoughts and calls, which come apart from the words, into the text: in the marks that every edge reads.

    A call is written when the answer is over, whole; then it is no beginning that nobody could go on with. An answer
    that goes on within a thought does so as this server has it: what it tells as words may have marks of its own.
    """

    def __init__(self, delivered: str = "") -> None:
        words = delivered.rpartition(THOUGHTS[_THOUGHT])[2].lstrip()
        self._thinks = False
        self._goes_on = words.startswith(_THOUGHT)
        """Whether what was delivered ends within a thought, and nothing has come since."""
        self._has_spoken = bool(words) and not self._goes_on
        self._calls: dict[int, tuple[str, str]] = {}
        self._room = _MOST_CALL_CHARS

    def write(self, delta: _Delta, *, is_over: bool) -> str:
        """Return the text of a part."""
        text = self._thought(delta.reasoning_content or (delta.reasoning if isinstance(delta.reasoning, str) else ""))
        if delta.content:
            text += self._closer() + delta.content
            self._has_spoken, self._goes_on = True, False
        for call in delta.tool_calls or ():
            self._collect(call)
        return text + (self.end() if is_over else "")

    def end(self) -> str:
        """Return what is told at the end: the calls."""
        calls = [_call_markup(name, arguments) for _, (name, arguments) in sorted(self._calls.items()) if name]
        self._calls = {}
        return self._closer() + "\n".join(calls) if calls else ""

    def _thought(self, words: str) -> str:
        if not words or self._has_spoken:  # thoughts between words have no marks
            return ""
        opener = "" if self._thinks or self._goes_on else _THOUGHT
        self._thinks, self._goes_on = True, False
        return opener + words

    def _closer(self) -> str:
        thought, self._thinks = self._thinks, False
        return THOUGHTS[_THOUGHT] if thought else ""

    def _collect(self, call: _CallDelta) -> None:
        """Put the parts of a call together; a server that numbers none begins one with each name."""
        function = call.function or _CalledFunction()
        last = max(self._calls, default=-1)
        place = call.index if call.index is not None else last + bool(function.name)
        name, arguments = self._calls.get(place, ("", ""))
        self._calls[place] = (name or function.name or "", arguments + (function.arguments or ""))
        self._room -= len(function.arguments or "") + len(function.name or "")
        if len(self._calls) > MAX_TOOLS or self._room < 0:
            raise RequestFailedError("the server calls more tools, or at greater length, than can be passed on")


def _call_markup(name: str, arguments: str) -> str:
    """Write a call in the form of Hermes; its arguments as the server sent them."""
    named = json.dumps(name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {named}, "arguments": {arguments or _NO_ARGUMENTS}}}\n</tool_call>'


def _tokens(said: int | None) -> int:
    """Take a count of a server that may say anything: a number that no message can hold would end the process."""
    return min(max(0, said or 0), _MOST_TOKENS)


# --- failures ---------------------------------------------------------------------------------------------------------


def is_busy(status: int) -> bool:
    """Whether a status asks to come again later."""
    return status in _BUSY


def failure_of(status: int, body: bytes, key: str = "") -> RequestFailedError:
    """Say what a status that is no success means for a request, in the server's own words, without our key."""
    words = f"the server behind this node answered {status}: {words_of(body, key)}"
    if status in _BUSY:
        return RequestFailedError(words, "no_slot")
    if status in _NO_KEY:
        return RequestFailedError(f"{words} (it is this node's key that it refuses)", "engine_restarted")
    if status >= 500 or status < 400:  # a redirection is no fault of the caller
        return RequestFailedError(words)
    is_too_long = any(sign.encode() in body for sign in _TOO_LONG)
    return RequestFailedError(words, "context_length_exceeded" if is_too_long else "bad_request")


def words_of(body: bytes, key: str = "") -> str:
    """Find the sentence in the body of an error: every server puts it elsewhere, and some repeat our key in it."""
    if key:
        body = body.replace(key.encode(), b"[key]")
    try:
        return _words(msgspec.json.decode(body))
    except _NO_JSON:
        return _clip(body[: 4 * _MOST_WORDS].decode(errors="replace")) or "nothing"


def _words(said: object) -> str:
    while isinstance(said, dict):
        fields = cast("dict[str, object]", said)
        inner = next((fields[name] for name in ("error", "message", "detail", "msg") if fields.get(name)), None)
        if inner is None:
            break
        said = inner
    return _clip(said if isinstance(said, str) else msgspec.json.encode(said).decode())


def _clip(words: str) -> str:
    words = printable(" ".join(words.split()))
    return words if len(words) <= _MOST_WORDS else words[: _MOST_WORDS - 1] + "…"
