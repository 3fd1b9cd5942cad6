"""What clients of many servers send to the OpenAI paths: obeyed, let pass, or refused by name."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.asgi import Exchange, call
from support.examples import examples
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.openai import extras, schema, thinking, tools
from zmqrt.bridge_http.openai.requests import chat_task, parse
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import RequestError

CHAT: Final[dict[str, Any]] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: Final[dict[str, Any]] = {"model": "m", "prompt": "hi"}
EMBEDDING: Final[dict[str, Any]] = {"model": "m", "input": "hi"}
PATHS: Final = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
}
VALIDATOR: Final = re.compile(
    r"Expected `|`int`|`str`|`float`|got `|\$\.|Invalid enum|Object (contains|missing)|msgspec"
)


def post(path: str, body: object) -> tuple[Exchange, Any]:
    """Ask the real app in front of a fleet that answers anything; return the answer and the task that it got."""
    fleet = FakeFleet("ok")
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = asyncio.run(call(make_app(fleet, BridgeSettings()), "POST", path, body=raw))
    return reply, fleet.asked[0][0] if fleet.asked else None


def task_of(body: dict[str, Any], path: str = "/v1/chat/completions") -> Any:
    """Return the task of a body that must be taken."""
    reply, task = post(path, {**PATHS[path], **body})
    assert task is not None, reply.body
    return task


def error_of(body: object, path: str = "/v1/chat/completions") -> tuple[str | None, str]:
    """Return param and message of a body that must be refused."""
    reply, task = post(path, {**PATHS[path], **body} if isinstance(body, dict) else body)
    assert (reply.status, task) == (400, None), (reply.status, body, reply.body)
    return reply.json["error"]["param"], reply.json["error"]["message"]


@pytest.mark.parametrize("tools", [b"\xff", b"\xc3\xa9"])
def test_a_body_is_utf_8_also_where_nobody_reads_it(tools: bytes) -> None:
    """What a tool has beside our fields is let pass, and still has to be text."""
    body = json.dumps({**CHAT, "tools": [{"type": "function", "function": {"name": "f", "x": "?"}}]}).encode()
    reply, task = post("/v1/chat/completions", body.replace(b"?", tools))

    assert (reply.status, task is not None) == ((400, False) if tools == b"\xff" else (200, True))


def test_minus_one_is_no_seed() -> None:
    """Though it would be one: other servers take it for none."""
    assert [task_of({"seed": seed}).seed for seed in (-1, -2)] == [None, 2**63 - 2]


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, -1, -1.0])
@pytest.mark.parametrize(
    "name",
    ["max_tokens", "max_completion_tokens", "min_tokens", "top_k", "seed", "n", "top_logprobs", "n_predict", "best_of"],
)
def test_null_and_minus_one_mean_that_nothing_was_said(name: str, value: object) -> None:
    """As at other open servers: the task is the one without the field."""
    assert task_of({name: value}) == task_of({})


def test_the_same_holds_for_completions_and_embeddings() -> None:
    """For their own numbers."""
    assert task_of({"logprobs": -1, "max_tokens": -1}, "/v1/completions") == task_of({}, "/v1/completions")
    assert task_of({"dimensions": -1}, "/v1/embeddings") == task_of({}, "/v1/embeddings")


def test_integral_floats_are_integers() -> None:
    """JSON knows one kind of number."""
    got = task_of(
        {
            "max_tokens": 5.0,
            "top_k": 4e1,
            "seed": 7.0,
            "n": 1.0,
            "min_tokens": 1.0,
            "stop_token_ids": [3.0],
            "logprobs": True,
            "top_logprobs": 2.0,
        }
    )

    assert (got.max_tokens, got.top_k, got.seed, got.min_tokens, got.stop_token_ids) == (5, 40, 7, 1, [3])
    assert (type(got.max_tokens), got.logprobs) == (int, 2)
    assert task_of({"prompt": [1.0, 2]}, "/v1/completions").token_ids == [1, 2]
    assert task_of({"logprobs": 3.0}, "/v1/completions").logprobs == 3
    assert task_of({"dimensions": 8.0, "input": [1.0]}, "/v1/embeddings") == tasks.Embed(input=[[1]], dimensions=8)


@pytest.mark.parametrize("value", [0.5, -2, 0, True, "5", [5], {}, 10**30, 1e30, -(2**63) - 1])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict", "max_new_tokens"])
def test_what_is_no_number_of_tokens_is_refused_in_words(name: str, value: object) -> None:
    """Halves, booleans, texts, and what is beyond all integers; under the name that the client used."""
    param, message = error_of({name: value})

    assert param == name
    assert message.startswith(f"{name}: a whole number from 1 or null is meant, not ")


@pytest.mark.parametrize("name", ["top_k", "seed", "min_tokens", "n", "top_logprobs", "stop_token_ids", "logit_bias"])
@pytest.mark.parametrize("raw", ["1e400", "-1e400", "1" + "0" * 6000, "99999999999999999999", "true", '"1"', "0.5"])
def test_numbers_beyond_everything_are_refused_by_name(name: str, raw: str) -> None:
    """Also those that no double holds, and with more digits than Python likes to read."""
    body = json.dumps({**CHAT, name: "HERE"}).replace('"HERE"', raw).encode()
    param, message = error_of(body)

    assert param == name
    assert not VALIDATOR.search(message)


@pytest.mark.parametrize("stop", ["", [""], [], None, ["", ""]])
def test_an_empty_stop_is_none(stop: object) -> None:
    """As at other open servers."""
    assert task_of({"stop": stop}).stop == []


def test_what_is_wrong_in_a_list_of_plain_values_is_named_by_its_field() -> None:
    """And the sentence says where."""
    assert error_of({"stop": ["x", 5]}) == ("stop", "stop[1]: a text is meant, not 5")
    assert error_of({"stop_token_ids": [-1]})[0] == "stop_token_ids"
    assert error_of({"logit_bias": {"5": 200}})[0] == "logit_bias"
    assert error_of({"prompt": ["x", None]}, "/v1/completions")[0] == "prompt"


def test_empty_stops_are_left_out() -> None:
    """The others count."""
    assert task_of({"stop": ["", "x", ""]}).stop == ["x"]
    assert error_of({"stop": ["x"] * 17}) == ("stop", "stop: at most 16 texts of 1 to 512 characters are meant")


@pytest.mark.parametrize("key", ["99999999999999999999", "-1", "x", "1_0", " 1", "1.0", "٣", "", "2147483648"])
def test_a_bias_for_what_is_no_token_id_is_refused(key: str) -> None:
    """Beyond 64 bits it was a 500; and Python reads more as a number than JSON does."""
    param, message = error_of({"logit_bias": {key: 1}})

    assert param == "logit_bias"
    assert "its names are token ids" in message


# --- fields of others ------------------------------------------------------------------------------------------------


OF_CHATS = {
    name: row
    for name, row in {**extras.EXTRAS, **extras.CHAT_EXTRAS}.items()
    if name not in schema.ChatRequest.__struct_fields__
}
NEUTRAL = [
    (name, value)
    for name, row in OF_CHATS.items()
    if not callable(row.at)
    for value in (None, *(row.at if row.at is not None else ("x", 5, {"a": [1]}, True)))
]
OTHERS: Final = {"temperature_last": True, "best_of": 3, "use_beam_search": True}
REFUSED = [
    (name, OTHERS.get(name, {"x": 1})) for name, row in OF_CHATS.items() if row.at is not None and not callable(row.at)
]


def test_neutral_fields_change_nothing() -> None:
    """Each at each value that asks for nothing: the task is the one without them."""
    plain = task_of({})

    assert [(name, value) for name, value in NEUTRAL if task_of({name: value}) != plain] == []


def test_what_would_change_the_answer_is_refused_by_name() -> None:
    """With its name in `param`, and why."""
    for name, value in REFUSED:
        param, message = error_of({name: value})
        assert (param, message.startswith(f"{name}: ")) == (name, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("best_of", True), ("mirostat", False), ("echo", 0), ("typical_p", True), ("use_beam_search", 0), ("tfs_z", "1")],
)
def test_true_is_not_one(name: str, value: object) -> None:
    """A boolean where a number is meant, and the other way round (mirostat: false is what some UIs send)."""
    row = extras.EXTRAS[name]
    expected = 200 if row.is_neutral(value, {}) else 400

    assert post("/v1/chat/completions", {**CHAT, name: value})[0].status == expected
    assert row.is_neutral(value, {}) is (name == "mirostat")


def test_no_name_is_both_obeyed_and_let_pass() -> None:
    """Or one of the two would be forgotten. Completions have no tools and no thoughts: there such names are extras."""
    obeyed = {*schema.ChatRequest.__struct_fields__, *schema.CompletionRequest.__struct_fields__}

    assert obeyed & {*extras.EXTRAS, *extras.CHAT_EXTRAS, *extras.ALIASES} == tools.NAMES | thinking.NAMES


def test_a_window_of_the_penalty_matters_only_with_a_penalty() -> None:
    """llama.cpp's own interface sends it always."""
    assert task_of({"repeat_last_n": 64, "repeat_penalty": 1.0}).repetition_penalty == 1.0
    assert task_of({"repeat_last_n": -1, "repeat_penalty": 1.1}).repetition_penalty == 1.1
    assert error_of({"repeat_last_n": 64, "repeat_penalty": 1.1})[0] == "repeat_last_n"
    assert error_of({"penalize_nl": True, "repetition_penalty": 1.1})[0] == "penalize_nl"


def test_samplers_are_let_pass_if_ours_are_among_them() -> None:
    """As a list, or as llama.cpp's interface writes them."""
    ours = ["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]

    assert task_of({"samplers": ours}) == task_of({"samplers": ";".join(ours)}) == task_of({"samplers": []})
    assert error_of({"samplers": ["temperature"]})[0] == "samplers"
    assert error_of({"samplers": 5})[0] == "samplers"


def test_what_llama_cpp_and_ollama_send_by_default_is_taken() -> None:
    """Whole bodies, as their interfaces send them."""
    llama = {
        "stream": False,
        "cache_prompt": True,
        "temperature": 0.8,
        "dynatemp_range": 0,
        "dynatemp_exponent": 1,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "typical_p": 1,
        "xtc_probability": 0,
        "xtc_threshold": 0.1,
        "repeat_last_n": 64,
        "repeat_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "dry_multiplier": 0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": -1,
        "max_tokens": -1,
        "timings_per_token": True,
        "reasoning_format": "none",
        "logit_bias": [],
    }
    ollama = {
        "keep_alive": "5m",
        "think": False,
        "options": {"num_ctx": 4096, "temperature": 0.5, "num_predict": 9, "repeat_penalty": 1.1, "repeat_last_n": -1},
    }

    assert task_of(llama).top_k == 40
    got = task_of(ollama)
    assert (got.temperature, got.max_tokens, got.repetition_penalty) == (0.5, 9, 1.1)
    assert error_of({"options": {"mirostat": 2}})[0] == "options.mirostat"
    assert error_of({"options": {"colour": 2}})[0] == "options.colour"
    assert error_of({"options": {"num_predict": "x"}})[0] == "options.num_predict"
    assert error_of({"options": 5}) == ("options", "options: an object is meant, not 5")


def test_openai_s_name_wins_over_another_one() -> None:
    """Where a client sends both."""
    assert task_of({"n_predict": 7}).max_tokens == 7
    assert task_of({"n_predict": 7, "max_tokens": 8}).max_tokens == 8
    assert task_of({"max_tokens": 8, "max_completion_tokens": 9}).max_tokens == 9


def test_an_unknown_name_is_refused_as_openai_does() -> None:
    """At the top and further down, with the way to it."""
    assert error_of({"colour": "red"}) == ("colour", "Unrecognized request argument supplied: colour")
    assert error_of({"stream_options": {"foo": 1}})[0] == "stream_options.foo"
    assert error_of({"stream": True, "stream_options": {"foo": 1}})[0] == "stream_options.foo"
    assert error_of({"messages": [{"role": "user", "content": "x", "foo": 1}]})[0] == "messages[0].foo"
    parts = [{"type": "text", "text": "x", "foo": 1}]
    assert error_of({"messages": [{"role": "user", "content": parts}]})[0] == "messages[0].content[0].foo"
    forged = "x` - at `$.messages"
    assert error_of({forged: 1})[0] == forged


def test_stream_options_without_a_stream_say_nothing() -> None:
    """OpenAI refuses them; most clients send them always."""
    assert task_of({"stream_options": {"include_usage": True}}) == task_of({"stream_options": None}) == task_of({})


# --- messages --------------------------------------------------------------------------------------------------------


def test_what_other_servers_answered_may_stand_in_the_history() -> None:
    """An assistant's message comes back as its client got it."""
    answered: dict[str, Any] = {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
        "audio": None,
        "tool_calls": [],
        "function_call": None,
        "reasoning_content": "hm",
        "annotations": [],
        "name": "a",
    }
    got = task_of({"messages": [answered, {"role": "user", "content": [{"type": "text", "text": "x"}]}]})

    assert got.messages == [
        tasks.ChatMessage(role="assistant", content="hello"),
        tasks.ChatMessage(role="user", content="x"),
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "content": "x", "prefix": True}, "messages[0].prefix"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "assistant", "refusal": "no"}, "messages[0].refusal"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content"),
        ("x", "messages[0]"),
    ],
)
def test_what_is_wrong_in_a_message_is_named_with_the_way_to_it(message: object, param: str) -> None:
    """As OpenAI writes it."""
    assert error_of({"messages": [message]})[0] == param


def test_a_wrong_word_is_answered_with_the_right_ones() -> None:
    """All of them."""
    assert error_of({"messages": [{"role": "robot"}]}) == (
        "messages[0].role",
        'messages[0].role: "assistant" or "developer" or "system" or "tool" or "user" is meant, not "robot"',
    )
    param, message = error_of({"encoding_format": "int8"}, "/v1/embeddings")
    assert (param, '"base64" or "float" or null is meant' in message) == ("encoding_format", True)


def test_too_many_messages_are_refused_by_their_number() -> None:
    """Without a look at each."""
    param, message = error_of({"messages": [{"role": "user", "content": "x"}] * 5000})

    assert (param, message) == ("messages", "messages: at most 4096 are meant, not 5000")


# --- embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "it is empty"),
        ([], "at least 1 entry"),
        ([""], "number 0 of the list is empty"),
        (["a", ""], "number 1 of the list is empty"),
        ([[]], "number 0 of the list is empty"),
        (["x"] * 2049, "at most 2048 are meant, not 2049"),
        (["a", 1], "and not a mixture"),
        ([True], "token ids"),
        (None, "a text, a list of texts"),
        ({"a": 1}, "a text, a list of texts"),
        ([-1], "from 0"),
        ([2**63], "from 0"),
    ],
)
def test_a_wrong_input_is_named_in_words(given: object, words: str) -> None:
    """Empty ones, too many, and what is no text."""
    param, message = error_of({"input": given}, "/v1/embeddings")

    assert param == "input"
    assert words in message


def test_inputs_are_cut_as_vllm_does() -> None:
    """-1: what the model takes; a number: so many tokens, from the front."""
    assert task_of({"truncate_prompt_tokens": -1}, "/v1/embeddings") == tasks.Embed(input=["hi"], truncate=True)
    assert task_of({"truncate_prompt_tokens": 8}, "/v1/embeddings").truncate_to == 8
    assert task_of({"truncate_prompt_tokens": None}, "/v1/embeddings") == tasks.Embed(input=["hi"])
    for value in (0, -2, 0.5, "x"):
        assert error_of({"truncate_prompt_tokens": value}, "/v1/embeddings")[0] == "truncate_prompt_tokens"
    both = {"truncate_prompt_tokens": 8, "truncation_side": "left"}
    assert error_of(both, "/v1/embeddings")[0] == "truncation_side"


# --- anything --------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 5.0, -0.0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, ""])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES: Final = sorted(
    {
        *schema.ChatRequest.__struct_fields__,
        *schema.CompletionRequest.__struct_fields__,
        *schema.EmbeddingRequest.__struct_fields__,
        *extras.EXTRAS,
        *extras.ALIASES,
        "options",
    }
)
MESSAGE = st.dictionaries(st.sampled_from(["role", "content", *extras.MESSAGE_EXTRAS]), JSON, max_size=4)
USUAL = st.sampled_from(["text", "user", "stop", "float", ["text"], {"type": "text"}, {"include_usage": True}])


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(sorted(PATHS)),
    fields=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), JSON | USUAL, max_size=4),
    messages=st.none() | st.lists(MESSAGE | JSON, max_size=3),
)
def test_whatever_stands_in_whatever_field_is_taken_or_refused_in_words(
    path: str, fields: dict[str, Any], messages: list[Any] | None
) -> None:
    """Never a 500, never a validator's words; and what is taken, a node can read."""
    body = {**PATHS[path], **fields}
    if messages is not None:
        body["messages"] = messages
    reply, task = post(path, json.dumps(body).encode("utf-8", "replace"))

    if task is None:
        assert reply.status == 400, reply.body
        assert not VALIDATOR.search(reply.json["error"]["message"])
        return
    assert reply.status == 200
    try:
        tasks.decode_task(tasks.encode(task))
    except RequestError as error:
        assert not VALIDATOR.search(error.text)


# --- what is said to the chat template -------------------------------------------------------------------------------


def test_a_chat_template_gets_what_is_meant_for_it() -> None:
    """As all servers with open models have it; what asks for the usual is no need of the request."""
    thinking = {"enable_thinking": False}
    plain: dict[str, Any] = {"chat_template_kwargs": {}, "add_generation_prompt": True, "continue_final_message": False}

    assert task_of({"chat_template_kwargs": thinking}).rendering == tasks.Rendering(kwargs=thinking)
    assert task_of({"continue_final_message": True}).rendering == tasks.Rendering(continue_final_message=True)
    assert task_of({"add_generation_prompt": False}).rendering == tasks.Rendering(add_generation_prompt=False)
    both = {"add_generation_prompt": False, "continue_final_message": True}
    assert task_of(both).rendering == tasks.Rendering(continue_final_message=True)
    assert task_of(plain) == task_of({})
    assert task_of(plain, "/v1/completions") == task_of({}, "/v1/completions")


def test_what_no_chat_template_can_get_is_refused_by_name() -> None:
    """Also where there is no conversation."""
    assert error_of({"chat_template_kwargs": {"messages": []}})[0] == "chat_template_kwargs"
    assert error_of({"chat_template_kwargs": {"a": 10**30}})[0] == "chat_template_kwargs"
    assert error_of({"chat_template_kwargs": [1]})[0] == "chat_template_kwargs"
    both = {"add_generation_prompt": True, "continue_final_message": True}
    assert error_of(both)[0] == "add_generation_prompt"
    for name, value in {"chat_template_kwargs": {"a": 1}, "continue_final_message": True}.items():
        assert error_of({name: value}, "/v1/completions")[0] == name


@pytest.mark.parametrize(
    ("fields", "kwargs"),
    [
        ({"enable_thinking": False}, {"enable_thinking": False, "thinking": False}),
        ({"think": True}, {"enable_thinking": True, "thinking": True}),
        ({"think": "low"}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "enabled"}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "auto"}}, {}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning": {"effort": "high", "enabled": True}}, {"reasoning_effort": "high", "enable_thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}),
        ({"reasoning": {}, "think": None}, {}),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
    ],
)
def test_how_a_model_is_to_think_is_for_its_template(fields: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """In the words of vLLM, SGLang, Ollama, DeepSeek, OpenRouter and OpenAI; what the template reads, it obeys."""
    rendering = task_of(fields).rendering
    assert (rendering.kwargs if rendering is not None else {}).items() >= kwargs.items()
    assert bool(rendering) == bool(kwargs)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"thinking": {"type": "enabled", "budget": 5}}, "thinking.budget"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"messages": [{"role": "assistant", "content": "x", "prefix": True}]}, "messages[0].prefix"),
        ({"messages": [{"role": "assistant", "content": "x", "partial": True}]}, "messages[0].partial"),
    ],
)
def test_what_nobody_could_obey_of_it_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    """A budget of thoughts, a word that means nothing, and a turn to go on with, with what to say instead."""
    assert error_of(fields)[0] == name
    assert error_of({"reasoning_effort": "high"}, "/v1/completions")[0] == "reasoning_effort"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("top_p", 0.5), ("top_k", 3), ("min_p", 0.1), ("repetition_penalty", 1.5), ("presence_penalty", 0.5)],
        *[("frequency_penalty", 0.5), ("min_tokens", 2), ("stop_token_ids", [7]), ("ignore_eos", True)],
        *[("logit_bias", {"7": 1.0}), ("stop", "x"), ("seed", 5), ("temperature", 0.25)],
    ],
)
def test_one_field_of_sampling_alone_is_obeyed(name: str, value: object) -> None:
    """Those that say none of them are the usual ones, and are not looked at field by field."""
    bodies = (CHAT, {**CHAT, name: value})
    bare, said = (chat_task(parse(json.dumps(body).encode(), schema.ChatRequest)) for body in bodies)

    assert getattr(said, name) != getattr(bare, name)
