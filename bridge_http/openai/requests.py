"""From the JSON of an OpenAI client to a task, or to the words of what is wrong with it. Pure.

Clients of many servers send other names for what is obeyed, fields that ask for nothing, and other ways to say "not
said": `normalize` leaves the fields of our schema alone, under its names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec

from ...protocol.faults import Fault, find_fault, show, soften
from ...protocol.tasks import ChatMessage, Embed, Generate, Rendering
from ...protocol.template_kwargs import kwargs_fault
from ..errors import InvalidRequestError
from ..json_body import read_value
from . import tools
from .extras import ALIASES, CHAT_EXTRAS, EXTRAS, MESSAGE_EXTRAS, PART_EXTRAS, TEXT_EXTRAS, Extra, same
from .grammars import grammar_of
from .schema import ChatRequest, CompletionRequest, ContentPart, EmbeddingRequest, Generation, Message, Texts, says_any
from .thinking import thinking_kwargs

DEFAULT_TEMPERATURE: Final = 1.0
_MOST_STOPS: Final = 16
_LONGEST_STOP: Final = 512
_MOST_STOP_IDS: Final = 64
LEAST_TOP_P: Final = 1e-6
"""What `top_p` 0 means: the likeliest token alone."""
R = TypeVar("R", bound=msgspec.Struct)
_TEXTS: Final = "a text, a list of texts, the token ids of a text, or a list of such lists, is meant"
_TOKEN_ID: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_FLAT: Final = frozenset({"prompt", "input", "stop", "stop_token_ids", "logit_bias"})
"""Fields that are a list or a map of plain values: `param` names the field, and the sentence the place in it."""
_MOST_INPUTS: Final = 2048
_MOST_CHOICES: Final = 64
"""Answers in one: each is a request of its own, and a broker lets 100 wait for a node."""
_MOST_BIASES: Final = 1024
Schema = type[msgspec.Struct]
_WITH_TOKEN_IDS: Final = (CompletionRequest, EmbeddingRequest)
UNSUPPORTED: Final = "unsupported_parameter"
_MOST_NAME: Final = 100
MOST_MESSAGES: Final = 4096
_OF_CHATS: Final = EXTRAS | CHAT_EXTRAS
_OF_TEXTS: Final = EXTRAS | TEXT_EXTRAS
_OF_MESSAGES: Final = frozenset(Message.__struct_fields__)
_OF_PARTS: Final = frozenset(ContentPart.__struct_fields__)
_SAMPLING: Final = frozenset(
    {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"}
    | {"stop_token_ids", "ignore_eos", "logit_bias", "stop", "seed"}
)
_DEFAULT_BY_MINUS_ONE: Final = frozenset(
    {"max_tokens", "max_completion_tokens", "min_tokens", "top_k", "seed", "n", "logprobs", "top_logprobs"}
    | {"dimensions", "top_n"}
)
"""Other servers take -1 for "not said" here."""


def parse(body: bytes, schema: type[R]) -> R:
    """Read a body.

    Raises:
        NotJsonError: (400) it is not JSON in UTF-8.
        InvalidRequestError: (400) it is not this API, or asks for what cannot be done.
    """
    plain = _decoded(body, schema)
    return convert(*normalize(read_fields(body), schema), schema) if plain is None else plain


def _decoded(body: bytes, schema: type[R]) -> R | None:
    """Read a body that has our fields and nothing else, as most have, in one step; None: it has to be looked at."""
    if not schema.__struct_config__.forbid_unknown_fields:
        return None
    decoder: msgspec.json.Decoder[R] = _decoder(schema)
    try:
        found = decoder.decode(body.decode())  # as text: of what is in no field of ours, bytes would not be looked at
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if getattr(found, "seed", None) == -1 else found  # the one field where -1 means itself, too


@cache
def _decoder(schema: Schema) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(schema)


def read_fields(body: bytes) -> dict[str, object]:
    """Read a body that is an object. Raises NotJsonError, and InvalidRequestError for another value."""
    value = read_value(body)
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body: an object is meant, not {show(value)}")
    return cast("dict[str, object]", value)


def convert(fields: dict[str, object], called: Mapping[str, str], schema: type[R]) -> R:
    """Make a struct of fields that it has all; `called`: how their sender called them. Raises InvalidRequestError."""
    try:
        return msgspec.convert(fields, schema)
    except (msgspec.ValidationError, OverflowError):
        pass  # 5.0 is 5 to other servers; only bodies that have such a thing pay for it
    softened = soften(fields, schema)
    try:
        return msgspec.convert(softened, schema)
    except (msgspec.ValidationError, OverflowError) as error:
        raise _explain(find_fault(error, softened, schema), called, schema) from None


def _explain(fault: Fault, called: Mapping[str, str], schema: Schema) -> InvalidRequestError:
    root = re.split(r"[.\[]", fault.path, maxsplit=1)[0]
    param = called.get(root, root) + fault.path[len(root) :]
    if fault.word == "missing":
        return InvalidRequestError(f"you must provide {param}", param=param, code="missing")
    if fault.word == "unknown":
        return InvalidRequestError(f"Unrecognized request argument supplied: {param}", param=param)
    is_texts = root in ("prompt", "input") and fault.word == "type" and schema in _WITH_TOKEN_IDS
    text = _TEXTS if is_texts else fault.text
    return InvalidRequestError(f"{param}: {text}", param=called.get(root, root) if root in _FLAT else param)


# --- the fields of our schema -----------------------------------------------------------------------------------------


def normalize(given: dict[str, object], schema: Schema) -> tuple[dict[str, object], dict[str, str]]:
    """Return the fields of the schema alone, and how the client called those that it calls otherwise.

    Raises:
        InvalidRequestError: (400) a field is unknown, or asks for what is not done.
    """
    fields, called = _lift_options(given)
    _rename(fields, called, schema)
    extras = _OF_CHATS if schema is ChatRequest else _OF_TEXTS
    kept = without_extras(fields, frozenset(schema.__struct_fields__), extras, lambda name: called.get(name, name))
    messages = kept.get("messages")
    if schema is ChatRequest and isinstance(messages, list):
        turns = cast("list[object]", messages)
        if len(turns) > MOST_MESSAGES:
            text = f"messages: at most {MOST_MESSAGES} are meant, not {len(turns)}"
            raise InvalidRequestError(text, param="messages")
        kept = {**kept, "messages": [without_message_extras(f"messages[{at}]", turn) for at, turn in enumerate(turns)]}
    return {name: value for name, value in kept.items() if not _is_default(name, value, schema)}, called


def refused(name: str, why: str) -> InvalidRequestError:
    """Build the answer to a field that would change the answer, were it obeyed."""
    return InvalidRequestError(f"{name}: {why}; leave it out", param=name, code=UNSUPPORTED)


def _lift_options(given: dict[str, object]) -> tuple[dict[str, object], dict[str, str]]:
    """Take the fields out of Ollama's `options`: they are the same, one level deeper."""
    fields = dict(given)
    options = fields.pop("options", None)
    if options is None:
        return fields, {}
    if not isinstance(options, dict):
        raise InvalidRequestError(f"options: an object is meant, not {show(options)}", param="options")
    called: dict[str, str] = {}
    for name, value in cast("dict[str, object]", options).items():
        if fields.get(name) is None:
            fields[name], called[name] = value, f"options.{name}"
    return fields, called


def _rename(fields: dict[str, object], called: dict[str, str], schema: Schema) -> None:
    """Give what has another name elsewhere ours; where both stand, ours wins."""
    for alias, name in ALIASES.items():
        if alias not in fields or name not in schema.__struct_fields__:
            continue
        value = fields.pop(alias)
        if fields.get(name) is None:
            fields[name], called[name] = value, called.get(alias, alias)


def without_extras(
    fields: dict[str, object], known: frozenset[str], extras: Mapping[str, Extra], named: Callable[[str], str]
) -> dict[str, object]:
    """Leave out what asks for nothing; `named` says how the client called a field."""
    if fields.keys() <= known:
        return fields
    kept: dict[str, object] = {}
    for name, value in fields.items():
        if name in known:
            kept[name] = value
        elif name not in extras:
            param = named(name)[:_MOST_NAME]
            raise InvalidRequestError(f"Unrecognized request argument supplied: {param}", param=param)
        elif not extras[name].is_neutral(value, fields):
            raise refused(named(name), extras[name].why)
    return kept


def without_message_extras(path: str, given: object) -> object:
    """Leave out what asks for nothing, of one turn."""
    if not isinstance(given, dict):
        return given
    message = nested(path, cast("dict[str, object]", given), _OF_MESSAGES, MESSAGE_EXTRAS)
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        _without_part_extras(f"{path}.content[{at}]", part) for at, part in enumerate(cast("list[object]", content))
    ]
    return {**message, "content": parts}


def _without_part_extras(path: str, given: object) -> object:
    """Take a part of type text; another kind is named before its fields are."""
    if not isinstance(given, dict):
        return given
    part: dict[str, Any] = cast("dict[str, Any]", given)
    kind = part.get("type")
    if not isinstance(kind, str):
        return part
    if kind not in ("text", "input_text", "output_text"):
        text = f"{path}.type: parts of type {show(kind)} are not understood, only text"
        raise InvalidRequestError(text, param=path.partition(".content")[0] + ".content", code=UNSUPPORTED)
    return nested(path, part, _OF_PARTS, PART_EXTRAS)


def nested(
    path: str, given: dict[str, object], known: frozenset[str], extras: Mapping[str, Extra]
) -> dict[str, object]:
    """Leave out what asks for nothing, of an object that stands somewhere in the body."""
    return without_extras(given, known, extras, lambda name: f"{path}.{name}")


def _is_default(name: str, value: object, schema: Schema) -> bool:
    if name == "logit_bias" and value == []:
        return True  # llama.cpp's default
    if name == "logprobs" and schema is ChatRequest:
        return False  # true or false there
    return name in _DEFAULT_BY_MINUS_ONE and same(value, -1)


# --- tasks ------------------------------------------------------------------------------------------------------------


def chat_task(request: ChatRequest) -> Generate:
    """Turn a chat into the task that engines get. Raises InvalidRequestError."""
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("top_logprobs: it needs logprobs: true", param="top_logprobs")
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    messages = [_message(message) for message in request.messages]
    return Generate(
        messages=messages,
        max_tokens=most,
        logprobs=logprobs,
        grammar=grammar_of(request),
        rendering=_rendering(request),
        **tools.tool_fields(request),
        **_sampling(request),
    )


def _rendering(request: ChatRequest) -> Rendering | None:
    kwargs = {**thinking_kwargs(request), **(request.chat_template_kwargs or {})}
    if fault := kwargs_fault(kwargs):
        raise InvalidRequestError(f"chat_template_kwargs: {fault}", param="chat_template_kwargs")
    if request.continue_final_message:
        if request.add_generation_prompt:
            text = "add_generation_prompt: nothing comes behind a message that is continued; leave it out"
            raise InvalidRequestError(text, param="add_generation_prompt")
        return Rendering(kwargs=kwargs, continue_final_message=True)
    if not kwargs and request.add_generation_prompt is not False:
        return None
    return Rendering(kwargs=kwargs, add_generation_prompt=request.add_generation_prompt is not False)


def completion_tasks(request: CompletionRequest) -> list[Generate]:
    """Turn each prompt into the task that engines get: never through a template. Raises InvalidRequestError."""
    prompts, count = _several("prompt", request.prompt), request.n or 1
    if len(prompts) * count > _MOST_CHOICES:
        each = f", {count} answers to each," if count > 1 else ""
        text = f"prompt: {len(prompts)} of them{each} are more than the {_MOST_CHOICES} answers that a request may have"
        raise InvalidRequestError(text, param="prompt")
    same = Generate(
        prompt="",
        raw=True,
        max_tokens=request.max_tokens,
        logprobs=request.logprobs,
        grammar=grammar_of(request),
        **_sampling(request),
    )
    return [_with_prompt(same, prompt) for prompt in prompts]


def _with_prompt(task: Generate, prompt: str | list[int]) -> Generate:
    if isinstance(prompt, str):
        return msgspec.structs.replace(task, prompt=prompt)
    return msgspec.structs.replace(task, prompt=None, token_ids=prompt, raw=False)


def choices_of(tasks: Sequence[Generate], n: int | None) -> list[Generate]:
    """Make `n` tasks of each, which differ in their seeds: the one that was given, and those that follow it.

    So a choice can be had again by itself. Tasks without a seed get theirs from their names on the wire.
    """
    return [_choice(task, number) for task in tasks for number in range(n or 1)]


def _choice(task: Generate, number: int) -> Generate:
    if not number or task.seed is None:
        return task
    return msgspec.structs.replace(task, seed=(task.seed + number) % 2**63)


def embedding_task(request: EmbeddingRequest) -> Embed:
    """Turn texts, or ids, into the task that engines get. Raises InvalidRequestError."""
    texts = _several("input", request.input)
    if len(texts) > _MOST_INPUTS:
        raise InvalidRequestError(f"input: at most {_MOST_INPUTS} are meant, not {len(texts)}", param="input")
    empty = next((at for at, one in enumerate(texts) if not one), None)
    if empty is not None:
        where = "it is empty" if isinstance(request.input, str) else f"number {empty} of the list is empty"
        raise InvalidRequestError(f"input: {where}, and the empty text has no embedding", param="input")
    most = request.truncate_prompt_tokens
    if most == 0:
        text = "truncate_prompt_tokens: a whole number from 1, -1 or null is meant, not 0"
        raise InvalidRequestError(text, param="truncate_prompt_tokens")
    if most is not None and request.truncation_side == "left":
        raise refused("truncation_side", "what is cut off is the end")
    return Embed(
        input=texts,
        dimensions=request.dimensions,
        truncate=most is not None,
        truncate_to=most if most is not None and most > 0 else None,
    )


def _sampling(request: Generation) -> dict[str, Any]:
    """Return the fields that both kinds share; what is not given keeps the default of the task."""
    temperature = DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
    if not says_any(request, _SAMPLING):
        return {"temperature": temperature}
    given = {
        "top_p": None if request.top_p is None else max(request.top_p, LEAST_TOP_P),
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "min_tokens": request.min_tokens,
        "stop_token_ids": _stop_ids(request.stop_token_ids),
        "ignore_eos": request.ignore_eos,
        "logit_bias": _bias(request.logit_bias),
        "stop": stops_of("stop", request.stop),
        "seed": None if request.seed is None else request.seed % 2**63,
    }
    return {"temperature": temperature, **{name: value for name, value in given.items() if value is not None}}


def _message(message: Message) -> ChatMessage:
    content = message.content
    if content is None or isinstance(content, str):
        return tools.turn(message, content or "")
    return tools.turn(message, "".join(part.text for part in content))


def _several(name: str, given: Texts) -> list[str | list[int]]:
    """Return texts, or the ids of texts, as a list. Raises InvalidRequestError if both kinds are mixed."""
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    if ids and len(ids) == len(given):
        return [ids]
    texts = [item for item in given if not isinstance(item, int)]
    if ids or len({type(text) for text in texts}) > 1:
        raise InvalidRequestError(f"{name}: {_TEXTS}, and not a mixture", param=name)
    return texts


def _bias(given: dict[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    if len(given) > _MOST_BIASES:
        text = f"logit_bias: at most {_MOST_BIASES} tokens are meant, not {len(given)}"
        raise InvalidRequestError(text, param="logit_bias")
    for name in given:
        if not _TOKEN_ID.fullmatch(name) or int(name) >= 2**31:
            raise InvalidRequestError(f"logit_bias: its names are token ids, not {show(name)}", param="logit_bias")
    return {int(name): bias for name, bias in given.items()}


def stops_of(name: str, given: str | list[str] | None) -> list[str] | None:
    """Return the stops; empty ones, which other servers take for none, are left out."""
    stops = [stop for stop in ([given] if isinstance(given, str) else given or []) if stop]
    if len(stops) > _MOST_STOPS or any(len(stop) > _LONGEST_STOP for stop in stops):
        text = f"{name}: at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters are meant"
        raise InvalidRequestError(text, param=name)
    return stops or None


def _stop_ids(given: list[int] | None) -> list[int] | None:
    if given is not None and len(given) > _MOST_STOP_IDS:
        text = f"stop_token_ids: at most {_MOST_STOP_IDS} are meant, not {len(given)}"
        raise InvalidRequestError(text, param="stop_token_ids")
    return given
