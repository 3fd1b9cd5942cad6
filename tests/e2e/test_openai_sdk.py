"""OpenAI's own client, as it is, against a real fleet: what it can do here, how it fails, and that it works once."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest

from support.http import EVENTS, asked
from support.lazily import lazily
from support.stack import Process, Stack, eventually, running

openai = lazily("openai")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
CHAT: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "hello"}], "seed": 7}
WORKER = ("--engine-opt", "step_ms=5,eos=never,fail_on_prompt=sulk", "--devices", "0", "--max-model-len", "2000")


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, Process]]:
    """One node and a bridge."""
    with running(worker=WORKER) as stack:
        yield stack, stack.bridge()


def client_of(bridge: Process, **options: Any) -> Any:
    """Make a client as its users do; untyped here, since its overloads know no arguments in a dictionary."""
    return openai.OpenAI(base_url=f"{bridge.endpoints['http']}/v1", api_key=options.pop("api_key", "none"), **options)


@pytest.fixture(scope="module")
def client(fleet: tuple[Stack, Process]) -> Generator[Any]:
    """Make a client of the fleet."""
    with client_of(fleet[1]) as made:
        yield made


def counter(stack: Stack, name: str) -> int:
    """Read a counter of the broker."""
    return stack.status().counters[name]


# --- what it can do --------------------------------------------------------------------------------------------------


def test_a_chat(client: Any) -> None:
    """Whole, and the same again for the same seed."""
    answers = [client.chat.completions.create(**CHAT, max_tokens=12) for _ in range(2)]

    answer = answers[0]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (12, 12 + answer.usage.prompt_tokens)
    assert answer.model == "mock"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint
    assert answers[1].choices[0].message.content == answer.choices[0].message.content


def test_a_streamed_chat_is_the_same_text(client: Any) -> None:
    """Piece by piece; with usage at the end if it is asked for."""
    answer = client.chat.completions.create(**CHAT, max_tokens=20)
    whole = answer.choices[0].message.content
    chunks = list(
        client.chat.completions.create(**CHAT, max_tokens=20, stream=True, stream_options={"include_usage": True})
    )

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage and chunks[-1].usage.completion_tokens) == ([], 20)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.system_fingerprint for chunk in chunks} == {answer.system_fingerprint}
    plain = list(client.chat.completions.create(**CHAT, max_tokens=3, stream=True))
    assert all(chunk.usage is None for chunk in plain)


def test_every_event_of_a_stream_names_what_made_it(client: Any) -> None:
    """By the fingerprint that a whole answer has; and the usage so far, where it is asked for as of vLLM."""
    whole = client.chat.completions.create(**CHAT, max_tokens=5)
    options = {"include_usage": True, "continuous_usage_stats": True}
    chat = list(client.chat.completions.create(**CHAT, max_tokens=5, stream=True, stream_options=options))
    plain = list(client.completions.create(model="mock", prompt="x", max_tokens=5, stream=True, stream_options=options))

    assert {chunk.system_fingerprint for chunk in (*chat, *plain)} == {whole.system_fingerprint}
    assert {chunk.usage.prompt_tokens for chunk in chat} == {whole.usage.prompt_tokens}
    for chunks in (chat, plain):
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        assert (counts == sorted(counts), counts[-1]) == (True, 5)
        assert all(
            chunk.usage.total_tokens == chunk.usage.prompt_tokens + made
            for chunk, made in zip(chunks, counts, strict=True)
        )


def test_offsets_are_the_same_whole_and_streamed(client: Any) -> None:
    """Over half characters too: the mock's tokens are bytes."""
    for seed in range(5):
        ask: dict[str, Any] = {"model": "mock", "prompt": "x", "max_tokens": 30, "logprobs": 1, "seed": seed}
        whole = client.completions.create(**ask).choices[0].logprobs
        chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**ask, stream=True)]

        assert [at for one in chunks if one for at in one.text_offset] == whole.text_offset
        assert all(
            token in top and top[token] == logprob
            for token, top, logprob in zip(whole.tokens, whole.top_logprobs, whole.token_logprobs, strict=True)
        )


def test_a_stop_ends_it(client: Any) -> None:
    """And is not part of the text."""
    whole = client.chat.completions.create(**CHAT, max_tokens=40).choices[0].message.content or ""
    stop = whole[10:12]
    answer = client.chat.completions.create(**CHAT, max_tokens=40, stop=stop).choices[0]

    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_several_answers_are_those_of_their_seeds(client: Any) -> None:
    """Three different ones, whole and streamed the same, and each again by the seed that is its own."""
    whole = client.chat.completions.create(**CHAT, max_tokens=12, n=3)
    texts = [choice.message.content for choice in whole.choices]
    joined = ["", "", ""]
    for chunk in client.chat.completions.create(**CHAT, max_tokens=12, n=3, stream=True):
        (choice,) = chunk.choices
        joined[choice.index] += choice.delta.content or ""
    single = [client.chat.completions.create(**{**CHAT, "seed": 7 + at}, max_tokens=12) for at in range(3)]

    assert len(set(texts)) == 3
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert texts == joined == [one.choices[0].message.content for one in single]
    assert whole.usage.prompt_tokens == single[0].usage.prompt_tokens
    assert whole.usage.completion_tokens == 36


def test_several_prompts_are_as_many_single_requests(client: Any) -> None:
    """Streamed too; and with log probabilities, whose offsets begin anew for each."""
    ask: dict[str, Any] = {"model": "mock", "max_tokens": 9, "seed": 3, "logprobs": 0}
    whole = client.completions.create(prompt=["one", "two", "three"], **ask)
    single = [client.completions.create(prompt=prompt, **ask) for prompt in ("one", "two", "three")]
    joined, offsets = ["", "", ""], [list[int](), list[int](), list[int]()]
    for chunk in client.completions.create(prompt=["one", "two", "three"], stream=True, **ask):
        (choice,) = chunk.choices
        joined[choice.index] += choice.text
        offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []

    assert [choice.text for choice in whole.choices] == joined == [one.choices[0].text for one in single]
    assert offsets == [one.choices[0].logprobs.text_offset for one in single]
    assert whole.usage.total_tokens == sum(one.usage.total_tokens for one in single)


def test_leaving_a_stream_of_several_answers_ends_all_of_them(fleet: tuple[Stack, Process], client: Any) -> None:
    """None goes on at work."""
    with client.chat.completions.create(**CHAT, max_tokens=1900, n=4, stream=True) as stream:
        next(iter(stream))
        eventually(lambda: fleet[0].status().running == 4, what="four under way")

    eventually(lambda: fleet[0].status().running == 0, what="none under way")


def test_an_answer_that_has_begun_goes_on(client: Any) -> None:
    """What comes is what would have come, had the words been the model's own; they count as prompt."""
    turns = [*CHAT["messages"], {"role": "assistant", "content": "So"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False, "chat_template_kwargs": {"any": [1]}}
    answer = client.chat.completions.create(**{**CHAT, "messages": turns}, max_tokens=9, extra_body=extra)
    plain = client.chat.completions.create(**{**CHAT, "messages": turns}, max_tokens=9)

    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens - 2  # no end of the turn, and no other begins
    assert len(answer.choices[0].message.content.encode()) <= 3 * 9
    assert answer.choices[0].message.content != plain.choices[0].message.content


def test_logprobs_spell_their_tokens(client: Any) -> None:
    """In both forms."""
    answer = client.chat.completions.create(**CHAT, max_tokens=4, logprobs=True, top_logprobs=2).choices[0]
    assert answer.logprobs is not None
    tokens: list[Any] = answer.logprobs.content
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode("utf-8", "replace") == answer.message.content
    assert all(token.top_logprobs[0].token == token.token for token in tokens)
    streamed = list(client.chat.completions.create(**CHAT, max_tokens=4, logprobs=True, stream=True))
    told: list[Any] = []
    for chunk in streamed:
        told += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [one.bytes for one in told] == [one.bytes for one in tokens]

    older = client.completions.create(model="mock", prompt="x", max_tokens=4, logprobs=1, seed=3).choices[0]
    assert older.logprobs is not None
    assert len(older.logprobs.tokens or []) == 4
    assert older.logprobs.text_offset is not None
    assert older.logprobs.text_offset[0] == 0


def test_a_completion_goes_on_from_plain_text(client: Any) -> None:
    """Of text and of token ids, whole and streamed."""
    whole = client.completions.create(model="mock", prompt="once upon", max_tokens=9, seed=1, temperature=0)
    ids = [256, *b"once upon"]
    by_id = client.completions.create(model="mock", prompt=ids, max_tokens=9, seed=1, temperature=0)
    streamed = client.completions.create(
        model="mock", prompt=["once upon"], max_tokens=9, seed=1, temperature=0, stream=True
    )

    assert whole.choices[0].text
    assert by_id.choices[0].text == whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def test_embeddings(client: Any) -> None:
    """As numbers, and as the base64 that the client asks for by itself."""
    usual = client.embeddings.create(model="mock-embed", input=["one", "two"])
    floats = client.embeddings.create(model="mock-embed", input="two", encoding_format="float", dimensions=64)
    by_id = client.embeddings.create(model="mock-embed", input=[1, 2, 3])

    assert [one.index for one in usual.data] == [0, 1]
    assert usual.data[1].embedding == pytest.approx(floats.data[0].embedding)
    assert usual.data[0].embedding != usual.data[1].embedding
    assert (len(by_id.data), len(floats.data[0].embedding)) == (1, 64)
    assert usual.usage.prompt_tokens > 0


def test_token_ids_are_the_model_s_own(client: Any) -> None:
    """The same vector as their text; those of another tokenizer are refused, for nobody would see the difference."""
    text = client.embeddings.create(model="mock-embed", input="hi", encoding_format="float")
    ids = client.embeddings.create(model="mock-embed", input=[[*b"hi"]], encoding_format="float")
    assert (ids.data[0].embedding, ids.usage) == (text.data[0].embedding, text.usage)

    for given in ([15339], [[104], [100277]]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="mock-embed", input=given)
        assert caught.value.param == "input"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="mock", prompt=[15339])
    assert caught.value.param == "prompt"


def test_inputs_that_are_too_long_are_refused_or_cut(client: Any) -> None:
    """As vLLM cuts them: to what the model takes, or to a number of tokens, from the front."""

    def embed(text: str, most: int | None = None) -> Any:
        extra = {"truncate_prompt_tokens": most}
        return client.embeddings.create(model="mock-embed", input=text, encoding_format="float", extra_body=extra)

    with pytest.raises(openai.BadRequestError) as caught:
        embed("x" * 2001)
    assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")
    assert embed("x" * 3000, -1).usage.prompt_tokens == 2000
    assert embed("hi there", 2).data == embed("hi").data
    assert embed("hi", 500).data == embed("hi").data


def test_dimensions_beyond_those_of_the_model_are_refused(client: Any) -> None:
    """Not cut in silence."""
    most = client.embeddings.create(model="mock-embed", input="x", dimensions=4096, encoding_format="float")
    assert len(most.data[0].embedding) == 4096
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="mock-embed", input="x", dimensions=4097)
    assert (caught.value.param, caught.value.code) == ("dimensions", "bad_request")


def test_models(client: Any) -> None:
    """All services of the fleet, and one of them by name."""
    assert {one.id for one in client.models.list()} == {"mock", "mock-embed", "mock-rerank", "mock-classify"}
    assert client.models.retrieve("mock").owned_by == "zmqrt"


def test_raw_responses_have_their_headers(client: Any) -> None:
    """The id of the request among them."""
    raw = client.chat.completions.with_raw_response.create(
        **CHAT, max_tokens=1, extra_headers={"X-Request-Id": "mine-1"}
    )

    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["content-type"] == "application/json; charset=utf-8"
    assert raw.parse().usage


def test_engines_of_ours_take_more(client: Any) -> None:
    """By the names that other open engines use."""
    extra = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True}

    assert client.chat.completions.create(**CHAT, max_tokens=4, extra_body=extra).choices[0].message.content


# --- how it fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"n": 17}, "n", "bad_request"),
        ({"temperature": 3}, "temperature", "bad_request"),
        ({"max_tokens": 0}, "max_tokens", "bad_request"),
        ({"extra_body": {"colour": "red"}}, "colour", "bad_request"),
        ({"messages": []}, "messages", "bad_request"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages", "context_length_exceeded"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "bad_request"),
        ({"logit_bias": {"99999999999999999999": 1}}, "logit_bias", "bad_request"),
        ({"max_tokens": 2, "extra_body": {"min_tokens": 3}}, "min_tokens", "bad_request"),
        ({"model": "mock-embed"}, "model", "wrong_task"),
    ],
)
def test_what_cannot_be_is_a_bad_request_that_names_it(
    client: Any, options: dict[str, Any], param: str | None, code: str | None
) -> None:
    """Before anything runs, streamed or not."""
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{**CHAT, **options}, stream=stream)

        assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
        is_too_long = "This model's maximum context length is 2000 tokens" in caught.value.message
        assert is_too_long is ("prompt is too long" in caught.value.message) is (code == "context_length_exceeded")


def test_failures_are_the_exceptions_of_the_client(fleet: tuple[Stack, Process], client: Any) -> None:
    """No such model, a model that raises, no such path; and no key where there are keys."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**CHAT, "model": "gpt-9"})
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(**{**CHAT, "messages": [{"role": "user", "content": "sulk"}]})
    assert raised.value.code == "model_raised"
    assert raised.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.NotFoundError) as nowhere:
        client.post("/nowhere", cast_to=object, body={})
    assert nowhere.value.code == "no_such_path"

    guarded = fleet[0].bridge("--api-keys", "acme:s3cret")
    with client_of(guarded, api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.chat.completions.create(**CHAT)
    assert refused.value.code == "invalid_api_key"
    with client_of(guarded, api_key="s3cret") as friend:
        assert friend.models.list().data


def test_a_full_fleet_is_a_rate_limit() -> None:
    """With the time to come back in a header."""
    narrow = ("--engine-opt", "step_ms=50,eos=never", "--node-max-capacity", "1")
    with running(broker=("--max-in-flight-requests", "1"), worker=narrow) as stack:
        bridge = stack.bridge()
        with client_of(bridge, max_retries=0) as client:
            stream = client.chat.completions.create(**CHAT, max_tokens=1000, stream=True)
            next(iter(stream))
            waiting = threading.Thread(target=lambda: client.chat.completions.create(**CHAT, max_tokens=5))
            waiting.start()  # of the same session: somebody else would still find room
            eventually(lambda: stack.status().queued == 1, what="one that waits")
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(**CHAT)
            stream.close()
            waiting.join(20)

    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_client_that_waits_no_longer_frees_the_slot(fleet: tuple[Stack, Process]) -> None:
    """By its own time-out, and by closing a stream."""
    stack, bridge = fleet
    with client_of(bridge, timeout=0.5, max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**CHAT, max_tokens=1900)
        eventually(lambda: stack.status().running == 0, within_s=5, what="a free slot")

    with client_of(bridge) as client:
        with client.chat.completions.create(**CHAT, max_tokens=1900, stream=True) as stream:
            next(iter(stream))
            eventually(lambda: stack.status().running == 1, what="a running request")
        eventually(lambda: stack.status().running == 0, within_s=5, what="a free slot")


def test_a_stream_that_fails_in_the_middle_ends_with_an_error() -> None:
    """Which the client raises: there is no [DONE] to be taken for the end."""
    with running(worker=("--engine-opt", "step_ms=50,eos=never")) as stack:
        bridge = stack.bridge("--request-timeout", "1s")  # so long a stream may stand still
        with client_of(bridge, max_retries=0) as client:
            stream = client.chat.completions.create(**CHAT, max_tokens=1000, stream=True)
            got = [next(iter(stream)) for _ in range(3)]
            stack.node("node-0").kill()
            with pytest.raises(openai.APIError) as caught:
                got.extend(stream)

    assert caught.value.code == "stalled"
    assert len(got) >= 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stream_that_has_nothing_to_tell_is_read_on() -> None:
    """A first token that takes longer than proxies and readers wait: chunks that add nothing come meanwhile."""
    with running(worker=("--engine-opt", "step_ms=18000,eos=never")) as stack:
        bridge = stack.bridge("--request-timeout", "100s")
        with client_of(bridge) as client:
            chunks = list(client.chat.completions.create(**CHAT, max_tokens=1, stream=True))
        with asked(bridge, "POST", "/infer", {"prompt": "hi", "max_tokens": 1}, EVENTS) as answer:
            text = answer.read().decode()

    assert [chunk.choices[0].delta.role for chunk in chunks][:2] == ["assistant", None]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert text.startswith(": still here\nid: ")
    assert text.count("\n\n") == text.count("data: ") == 2


# --- and that it works once ------------------------------------------------------------------------------------------


def test_a_retry_with_a_key_is_the_same_request() -> None:
    """The client gives up waiting, and asks again by itself: the work goes on meanwhile, and is done once."""
    with running(worker=("--engine-opt", "step_ms=100,eos=never")) as stack:
        with client_of(stack.bridge(), timeout=1.0, max_retries=4) as client:
            answer = client.chat.completions.create(**CHAT, max_tokens=25, extra_headers={"Idempotency-Key": "order-1"})

        assert answer.usage is not None
        assert answer.usage.completion_tokens == 25
        eventually(lambda: counter(stack, "completed") == 1, what="the end in the counters")
        counted = stack.status().counters
        assert (counted["completed"], counted["dispatches"], counted["cancelled"]) == (1, 1, 0)


def test_an_answer_that_is_given_again_has_its_id(client: Any) -> None:
    """Whole and streamed; and a key that is used for something else is told so in words that its sender knows."""
    named = {"extra_headers": {"Idempotency-Key": "order-2"}}
    first, second = (client.chat.completions.create(**CHAT, max_tokens=3, **named) for _ in range(2))
    also = {"extra_headers": {"Idempotency-Key": "stream-2"}}
    streams = [list(client.chat.completions.create(**CHAT, max_tokens=3, stream=True, **also)) for _ in range(2)]

    assert second == first
    assert len({chunk.id for chunks in streams for chunk in chunks}) == 1
    assert streams[0][0].id != first.id
    with pytest.raises(openai.ConflictError) as caught:
        client.chat.completions.create(**CHAT, max_tokens=4, **named)
    assert caught.value.code == "idempotency_key_reused"
    assert "Idempotency-Key" in caught.value.message


def test_without_a_key_a_504_is_not_asked_again() -> None:
    """The client would ask twice more, were it not told that this does not help."""
    with running(worker=("--engine-opt", "step_ms=3000,eos=never")) as stack:
        bridge = stack.bridge("--request-timeout", "500ms")
        with client_of(bridge) as client, pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**CHAT, max_tokens=1000)

        assert caught.value.status_code == 504
        assert counter(stack, "requests") == 1
