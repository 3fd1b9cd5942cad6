"""From the JSON of an OpenAI client to a task, or to the words of what is wrong with it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from ...protocol.errors import PortableError
from ...protocol.tasks import ChatMessage, Embed, Generate
from ..json_body import read_json
from .schema import ChatRequest, CompletionRequest, EmbeddingRequest, Generation, Message, Texts

DEFAULT_TEMPERATURE: Final = 1.0
_MOST_STOPS: Final = 16
_LEAST_TOP_P: Final = 1e-6
"""What `top_p` 0 means: the likeliest token alone."""
R = TypeVar("R", ChatRequest, CompletionRequest, EmbeddingRequest)
_DECODERS: Final[dict[type, msgspec.json.Decoder[Any]]] = {
    schema: msgspec.json.Decoder(schema) for schema in (ChatRequest, CompletionRequest, EmbeddingRequest)
}


class InvalidRequestError(PortableError):
    """400: JSON, but not what this API takes. `param` names the field, `code` is a word for programs."""

    def __init__(self, text: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.param = param
        self.code = code


def parse(body: bytes, schema: type[R]) -> R:
    """Read a body.

    Raises:
        NotJsonError: (400) it is not JSON in UTF-8.
        InvalidRequestError: (400) it is not this API, or asks for what cannot be done.
    """
    text = read_json(body)
    try:
        request: R = _DECODERS[schema].decode(text)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    for name, is_neutral in _REFUSED.items():
        value = getattr(request, name, None)
        if value is not None and not is_neutral(value):
            raise _unsupported(name)
    return request


def chat_task(request: ChatRequest) -> Generate:
    """Turn a chat into the task that engines get. Raises InvalidRequestError."""
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    messages = [_message(number, one) for number, one in enumerate(request.messages)]
    return Generate(messages=messages, max_tokens=most, logprobs=logprobs, **_sampling(request))


def completion_task(request: CompletionRequest) -> Generate:
    """Turn a completion into the task that engines get: never through a template. Raises InvalidRequestError."""
    text, ids = _single_prompt(request.prompt)
    return Generate(
        prompt=text,
        token_ids=ids,
        raw=text is not None,
        max_tokens=request.max_tokens,
        logprobs=request.logprobs,
        **_sampling(request),
    )


def embedding_task(request: EmbeddingRequest) -> Embed:
    """Turn texts, or ids, into the task that engines get. Raises InvalidRequestError."""
    texts = _several("input", request.input)
    return Embed(input=texts, dimensions=request.dimensions)


def _sampling(request: Generation) -> dict[str, Any]:
    """Return the fields that both kinds share; what is not given keeps the default of the task."""
    if request.n not in (None, 1):
        raise InvalidRequestError(f"n is {request.n}: one answer a request; send several requests", param="n")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options are for stream: true", param="stream_options")
    given = {
        "top_p": None if request.top_p is None else max(request.top_p, _LEAST_TOP_P),
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "min_tokens": request.min_tokens,
        "stop_token_ids": request.stop_token_ids,
        "ignore_eos": request.ignore_eos,
        "logit_bias": _bias(request.logit_bias),
        "stop": _stops(request.stop),
        "seed": None if request.seed is None else request.seed % 2**63,
    }
    temperature = DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
    return {"temperature": temperature, **{name: value for name, value in given.items() if value is not None}}


def _message(number: int, message: Message) -> ChatMessage:
    param = f"messages[{number}]"
    if message.tool_calls:
        raise InvalidRequestError("tool calls are not understood here", param=f"{param}.tool_calls", code=_UNSUPPORTED)
    content = message.content
    if content is None or isinstance(content, str):
        return ChatMessage(role=message.role, content=content or "")
    for part in content:
        if part.type != "text" or part.text is None:
            text = f"parts of type {part.type[:40]!r} are not understood, only text"
            raise InvalidRequestError(text, param=f"{param}.content", code=_UNSUPPORTED)
    return ChatMessage(role=message.role, content="".join(part.text or "" for part in content))


def _single_prompt(prompt: Texts) -> tuple[str | None, list[int] | None]:
    """Return the text, or the ids, of the one prompt."""
    texts = _several("prompt", prompt)
    if len(texts) > 1:
        raise InvalidRequestError(f"{len(texts)} prompts: send one request for each", param="prompt")
    (only,) = texts
    return (only, None) if isinstance(only, str) else (None, only)


def _several(name: str, given: Texts) -> list[str | list[int]]:
    """Return texts, or the ids of texts, as a list. Raises InvalidRequestError if both kinds are mixed."""
    if isinstance(given, str):
        return [given]
    ids = [one for one in given if isinstance(one, int)]
    if ids and len(ids) == len(given):
        return [ids]
    texts = [one for one in given if not isinstance(one, int)]
    if ids or len({type(one) for one in texts}) > 1:
        text = f"{name}: a text, a list of texts, the token ids of a text, or a list of such lists"
        raise InvalidRequestError(text, param=name)
    return texts


def _bias(given: dict[str, float] | None) -> dict[int, float] | None:
    try:
        return None if given is None else {int(token_id): bias for token_id, bias in given.items()}
    except ValueError:
        raise InvalidRequestError("logit_bias: its keys are token ids", param="logit_bias") from None


def _stops(given: str | list[str] | None) -> list[str] | None:
    stops = [given] if isinstance(given, str) else given
    if stops is not None and (len(stops) > _MOST_STOPS or not all(0 < len(one) <= 512 for one in stops)):
        text = f"stop: at most {_MOST_STOPS} texts of 1 to 512 characters"
        raise InvalidRequestError(text, param="stop")
    return stops


# --- what is refused -------------------------------------------------------------------------------------------------

_UNSUPPORTED: Final = "unsupported_parameter"


def _empty(value: Any) -> bool:  # noqa: ANN401 - whatever a client sent
    return not value


def _never(_value: Any) -> bool:  # noqa: ANN401 - whatever a client sent
    return False


_REFUSED: Final[dict[str, Callable[[Any], bool]]] = {
    "response_format": lambda value: value == {"type": "text"},
    "modalities": lambda value: value == ["text"],
    "tools": _empty,
    "tool_choice": lambda value: value in ("none", "auto"),
    "functions": _empty,
    "function_call": lambda value: value in ("none", "auto"),
    "audio": _never,
    "prediction": _never,
    "reasoning_effort": lambda value: value == "none",
    "verbosity": lambda value: value == "medium",
    "web_search_options": _never,
    "moderation": _never,
    "best_of": lambda value: value == 1,
    "echo": _empty,
    "suffix": _empty,
}
"""Fields that would change the answer, and which values of them ask for what is done anyway."""


def _unsupported(name: str) -> InvalidRequestError:
    text = f"{name}: no engine here obeys it, so the answer would not be what you ask for; leave it out"
    return InvalidRequestError(text, param=name, code=_UNSUPPORTED)


_MISSING: Final = re.compile(r"Object missing required field `(?P<name>\w+)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_UNKNOWN: Final = re.compile(
    r"Object contains unknown field `(?P<name>.*)`(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL
)
_AT: Final = re.compile(r"^(?P<text>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


def _explain(text: str) -> InvalidRequestError:
    """Turn msgspec's sentence into OpenAI's."""
    if found := _MISSING.match(text):
        return InvalidRequestError(f"you must provide {_join(found)}", param=_join(found), code="missing")
    if found := _UNKNOWN.match(text):
        name = _join(found)[:100]
        return InvalidRequestError(f"Unrecognized request argument supplied: {name}", param=name)
    found = _AT.match(text)
    assert found is not None
    said = found["text"].replace("`", "")
    param = found["path"] or None
    return InvalidRequestError(f"{param}: {said}" if param else said, param=param)


def _join(found: re.Match[str]) -> str:
    return f"{found['path']}.{found['name']}" if found["path"] else found["name"]
