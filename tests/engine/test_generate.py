"""The `generate` engine with real arithmetic: the same tokens as transformers computes them one by one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.engines import (
    alone,
    as_transformers,
    ask,
    describe,
    drawn_one_by_one,
    generated,
    prompt,
    requests_of_all_kinds,
    tokens_of,
)
from support.reference_sampling import keep_likely
from support.tiny import silent, tiny_model
from zmqrt.worker.engines.base import CannotLoadError, EngineSpec, SamplingParams, TokenEngine, TokenEvent, TokenRequest
from zmqrt.worker.engines.generate.attention import PoolAttention
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.engines.generate.llama import LlamaDecoder

pytestmark = pytest.mark.integration
BLOCK = 32
CHUNK = 128
PATHS = ["fused", "modules"]
Make = Callable[..., GenerateEngine]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model."""
    return tiny_model(tmp_path_factory.mktemp("models"))


def spec(folder: Path, **options: object) -> EngineSpec:
    """Describe an engine on CPU."""
    fields = {name: options.pop(name) for name in ("max_model_len", "slots") if name in options}
    return describe(folder, options={name: str(value) for name, value in options.items()}, **fields)


@pytest.fixture(scope="module")
def make(model_path: Path) -> Make:
    """Make engines of the tiny model; options are those of `--engine-opt`, and slots and max_model_len."""

    def made(**options: object) -> GenerateEngine:
        engine = factory(spec(model_path, **options), silent)
        assert isinstance(engine, GenerateEngine)
        return engine

    return made


def arrive_one_by_one(engine: TokenEngine, requests: Sequence[TokenRequest], seed: int) -> dict[int, list[int]]:
    """Submit at random moments while others run."""
    rng = random.Random(seed)
    waiting, made = list(requests), {request.ticket: list[int]() for request in requests}
    ended = 0
    while ended < len(requests):
        if waiting and rng.random() < 0.4:
            engine.submit(waiting.pop(rng.randrange(len(waiting))))
        for event in engine.poll(0.0):
            made[event.ticket] += event.token_ids
            ended += event.finish_reason is not None
    return made


@pytest.mark.parametrize("path", PATHS)
def test_greedy_equals_generate_one_by_one(make: Make, model_path: Path, path: str) -> None:
    """Prompts of any length, in one batch, and computed in pieces of 32 and of one token."""
    oracle = as_transformers(model_path)
    lengths = [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 130]
    requests = [ask(ticket=length, length=length, tokens=20) for length in lengths]

    batches = [tokens_of(make(path=path, chunk=chunk, reuse=0), requests) for chunk in (128, 32, 1)]

    for request in requests:
        assert [batch[request.ticket] for batch in batches] == [generated(oracle, request)] * 3


def test_every_way_of_running_a_model_draws_the_same(make: Make, model_path: Path) -> None:
    """Fused and by modules; all at once, alone, one by one, in a pool too small for all: as the reference draws."""
    requests = requests_of_all_kinds(8, vocabulary=256, tokens=24)
    oracle = as_transformers(model_path)
    right = {request.ticket: drawn_one_by_one(oracle, request) for request in requests}

    for path in PATHS:
        engine = make(path=path)
        assert tokens_of(engine, requests) == right
        assert tokens_of(engine, requests) == right  # the second time most of each prompt is there already
        assert engine.counts.reused_tokens > 0
        assert {one.ticket: alone(engine, one).token_ids for one in requests} == right
        for seed in range(3):
            assert arrive_one_by_one(engine, requests, seed) == right
        engine.close()
    small = make(kv_mib=0.25, max_model_len=120, chunk=16)
    assert small.capacity().kv_tokens == 128
    assert tokens_of(small, requests) == right


@pytest.mark.parametrize("path", PATHS)
def test_a_request_resumed_after_any_token_goes_on_the_same(make: Make, path: str) -> None:
    """On an engine that has never seen it, and on one that has."""
    fresh = make(path=path, reuse=0)
    known = make(path=path)
    for request in requests_of_all_kinds(4, vocabulary=256, tokens=12):
        whole = alone(known, request).token_ids
        for cut in range(1, 12):
            resumed = msgspec.structs.replace(request, resume_ids=whole[:cut])
            for engine in (fresh, known):
                assert alone(engine, resumed).token_ids == whole[cut:]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", [100, 300])
@pytest.mark.parametrize("begun", [1, 2, 15])
def test_a_short_prompt_does_not_wait_for_a_long_one(model_path: Path, path: str, length: int, begun: int) -> None:
    """While 4,000 tokens are computed, its first token comes within three chunks and those of its own, all counted."""
    long_model = tiny_model(model_path.parent, "positions=8192")
    asked = spec(long_model, path=path, max_model_len=8192, slots=2, kv_mib=64, chunk=CHUNK)
    engine = factory(asked, silent)
    assert isinstance(engine, GenerateEngine)
    engine.submit(ask(ticket=1, length=4000, tokens=4))
    for _ in range(begun):
        assert not any(event.token_ids for event in engine.poll(0.0)), "the long prompt is over"
    engine.submit(ask(ticket=2, length=length, tokens=4))

    counts = engine.counts
    steps, computed = counts.steps, counts.prompt_tokens
    polls = 0
    events: list[TokenEvent] = []
    while not events:
        polls += 1
        events = [event for event in engine.poll(0.0) if event.token_ids]
    steps, computed = counts.steps - steps, counts.prompt_tokens - computed
    print(f"{length} tokens after {begun} chunks: {polls} polls, {steps} steps, {computed} tokens of prompts computed")

    assert [event.ticket for event in events] == [2]
    assert polls <= 3 + math.ceil(length / CHUNK)
    assert computed <= steps * CHUNK
    engine.close()


def test_prefixes_are_used_and_change_nothing(make: Make) -> None:
    """In place, by copy, in part, and of a request that still runs."""
    engine, fresh = make(slots=4), make(slots=4, reuse=0)
    shared = prompt(100)
    plans = [(shared, 20), ([*shared[:90], 5, 6], 20), ([*shared[:90], 7], 60), ([*shared, 9], 30), (shared[:40], 30)]
    requests = [ask(ticket=number, tokens=tokens, prompt_ids=ids) for number, (ids, tokens) in enumerate(plans)]
    right = {one.ticket: alone(fresh, one).token_ids for one in requests}

    assert {one.ticket: alone(engine, one).token_ids for one in requests} == right
    in_place, by_copy = engine.counts.reused_in_place, engine.counts.reused_by_copy
    assert in_place + by_copy == 4
    assert min(in_place, by_copy) >= 1
    assert arrive_one_by_one(engine, requests[:4], 1) == {one.ticket: right[one.ticket] for one in requests[:4]}
    assert engine.counts.reused_by_copy > by_copy


def test_many_requests_a_third_of_them_cancelled_leave_nothing(make: Make) -> None:
    """No row, no stretch of the pool, no tensor more than before."""
    import gc

    import torch

    engine = make(slots=6)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())

    def play(first: int) -> None:
        tickets = range(first, first + 6)
        for ticket in tickets:
            engine.submit(ask(ticket=ticket, length=1 + ticket % 70, tokens=4))
        engine.poll(0.0)
        for ticket in tickets[::3]:
            engine.cancel(ticket)
        ended = 0
        while ended < 6:
            ended += sum(event.finish_reason is not None for event in engine.poll(0.0))

    play(0)
    before = tensors()
    for first in range(6, 300, 6):
        play(first)

    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_percent) == (0, 0, 0)
    assert tensors() <= before


def test_logprobs_are_those_of_the_model(make: Make, model_path: Path) -> None:
    """Before temperature, bias and noise; the likeliest and the drawn one."""
    import torch

    request = ask(sampling=SamplingParams(temperature=1.2, seed=4, logprobs=3))
    oracle = as_transformers(model_path)

    outcome = alone(make(), request)

    ids = torch.tensor([[*request.prompt_ids, *outcome.token_ids]])
    right = oracle(input_ids=ids).logits.detach()[0, len(request.prompt_ids) - 1 : -1].log_softmax(dim=-1)
    for row, token, report in zip(right, outcome.token_ids, outcome.logprobs, strict=True):
        assert set(report) == {token, *row.topk(3).indices.tolist()}
        assert report == pytest.approx({one: float(row[one]) for one in report}, abs=1e-4)


# --- other architectures ---------------------------------------------------------------------------------------------


def config_of(kind: str, **fields: object) -> Any:
    """Build a small random model of an architecture."""
    transformers = untyped("transformers")
    common = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "eos_token_id": 299,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }
    return transformers.AutoConfig.for_model(kind, **{**common, **fields})


@pytest.mark.parametrize(
    ("kind", "fields", "path"),
    [
        ("llama", {"attention_bias": True, "head_dim": 32, "tie_word_embeddings": False}, "fused"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "fused"),
        ("mistral", {"sliding_window": None}, "fused"),
        ("qwen2", {"use_sliding_window": False}, "fused"),
        ("qwen3", {"head_dim": 16}, "fused"),
        ("llama", {"mlp_bias": True}, "modules"),
        ("phi", {}, "modules"),
        ("gemma", {"head_dim": 16}, "modules"),
    ],
)
def test_each_architecture_takes_its_way_and_is_right(
    tmp_path: Path, kind: str, fields: dict[str, Any], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The fastest that can run it, chosen by itself, said in the log, and equal to `generate`."""
    untyped("torch").manual_seed(1)
    model = untyped("transformers").AutoModelForCausalLM.from_config(config_of(kind, **fields))
    model.save_pretrained(tmp_path)
    model.eval()
    model.generation_config.eos_token_id = None
    request = ask(length=40, tokens=16)

    with caplog.at_level("INFO"):
        engine = factory(spec(tmp_path, max_model_len=0), silent)

    assert f"runs on the path {path!r}" in caplog.text
    assert alone(engine, request).token_ids == generated(model, request)
    engine.close()


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("stablelm", {}, r"its attention cannot be replaced .model type stablelm."),
        ("mistral", {"sliding_window": 16}, r"its layers are not all plain attention .*sliding_attention.*"),
        ("phi3", {"sliding_window": 16}, r"its layers are not all plain attention .*sliding_attention.*type phi3"),
    ],
)
def test_a_model_that_nothing_here_can_run_is_refused(
    tmp_path: Path, kind: str, fields: dict[str, Any], words: str
) -> None:
    """While it loads, with the reason, what is run here, and on no path that one may ask for."""
    untyped("transformers").AutoModelForCausalLM.from_config(config_of(kind, **fields)).save_pretrained(tmp_path)

    for path in ("auto", *PATHS):
        with pytest.raises(CannotLoadError, match=f"tiny-random cannot be run here: {words}.*zmqrt runs decoders"):
            factory(spec(tmp_path, max_model_len=0, path=path), silent)


def test_the_fused_decoder_is_not_forced_on_another_architecture(tmp_path: Path) -> None:
    """It is refused with the reason, and with what to do."""
    untyped("transformers").AutoModelForCausalLM.from_config(config_of("phi")).save_pretrained(tmp_path)

    with pytest.raises(CannotLoadError, match=r"path=fused: model type phi is none of llama.* runs on 'modules'"):
        factory(spec(tmp_path, max_model_len=0, path="fused"), silent)


def test_limits_keep_the_sets_that_transformers_keeps() -> None:
    """top-k, top-p and min-p mean what `generate` means by them."""
    import numpy as np
    import torch

    logits_process = untyped("transformers.generation.logits_process")
    logits = np.random.RandomState(0).standard_normal(500).astype(np.float32) * 2
    warpers: list[tuple[SamplingParams, Any]] = [
        (SamplingParams(top_k=7), logits_process.TopKLogitsWarper(7)),
        (SamplingParams(top_p=0.8), logits_process.TopPLogitsWarper(0.8)),
        (SamplingParams(min_p=0.05), logits_process.MinPLogitsWarper(0.05)),
    ]
    for sampling, warper in warpers:
        theirs = warper(None, torch.tensor(logits)[None])[0]

        assert (np.isfinite(keep_likely(logits, sampling)) == torch.isfinite(theirs).numpy()).all()


def test_what_it_does_not_know_is_refused(model_path: Path) -> None:
    """A misspelt option or type is an error that lists the right ones."""
    with pytest.raises(CannotLoadError, match="int3"):
        factory(msgspec.structs.replace(spec(model_path), dtype="int3"), silent)
    with pytest.raises(ValueError, match="chnk"):
        factory(spec(model_path, chnk=5), silent)
    with pytest.raises(ValueError, match="there are auto, fused"):
        factory(spec(model_path, path="magic"), silent)


def test_a_pool_smaller_than_the_context_bounds_the_context(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """And says so; one with no room for a request is refused, with what to do."""
    small = make(kv_mib=0.25, max_model_len=0)

    assert (small.capacity().context, small.capacity().kv_tokens) == (128, 128)
    assert "memory bears 128 tokens of keys and values; the context is bounded to that" in caplog.text
    with pytest.raises(ValueError, match=r"memory for 25 tokens .* use a smaller model"):
        make(kv_mib=0.05)
    with pytest.raises(CannotLoadError, match=r"--max-model-len 512 is more than .* keys and values of 128 tokens"):
        make(kv_mib=0.25, max_model_len=512)


def test_an_engine_that_computes_something_else_is_not_used(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The self-test finds it while loading: transformers' modules take over, and what fails there too is refused."""
    right = LlamaDecoder.forward

    def wrong(self: LlamaDecoder, *args: Any) -> Any:
        return right(self, *args) * 0.5

    monkeypatch.setattr(LlamaDecoder, "forward", wrong)
    with pytest.raises(CannotLoadError, match="off by"):
        make(path="fused")
    with caplog.at_level("INFO"):
        make()
    assert "it is loaded anew without the path 'fused'" in caplog.text
    assert "runs on the path 'modules'" in caplog.text

    def far_off(self: PoolAttention, layer: int, *rest: Any) -> Any:
        return attend(self, layer, *rest) * (0.5 if layer == 1 else 1.0)

    attend = PoolAttention.attend
    monkeypatch.setattr(PoolAttention, "attend", far_off)
    with pytest.raises(CannotLoadError, match="tiny-random cannot be run here: the self-test is off by"):
        make()
