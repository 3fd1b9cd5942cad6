"""The transformers engine on a tiny random model: the tokens it promises, and the traps of the library under it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.engines import alone, ask, prompt, requests_of_all_kinds, run
from support.tiny import tiny_model
from zmqrt.worker.engines.base import (
    EngineFatalError,
    EngineFullError,
    EngineSpec,
    RequestRefusedError,
    SamplingParams,
    TokenEngine,
)
from zmqrt.worker.engines.cb_loop import Pool, untyped
from zmqrt.worker.engines.transformers_cb import TransformersEngine, factory

pytestmark = pytest.mark.integration

BLOCK = 32
EOS = 258
LoadModel = Callable[[], Any]
MakeEngine = Callable[..., TransformersEngine]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model."""
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def load_model(model_path: Path) -> LoadModel:
    """Load the model afresh: an engine changes its model's attention, so none is shared."""
    import torch

    torch.set_num_threads(1)
    loader = untyped("transformers").AutoModelForCausalLM

    def load() -> Any:
        return loader.from_pretrained(model_path, dtype=torch.float32)

    return load


@pytest.fixture(scope="module")
def make_engine(load_model: LoadModel) -> MakeEngine:
    """Make engines with pools of any size."""

    def make(*, slots: int = 8, blocks: int = 256, chunk: int = 128, context: int = 512) -> TransformersEngine:
        pool = Pool(slots=slots, block_tokens=BLOCK, blocks=blocks, chunk_tokens=chunk)
        return TransformersEngine(load_model(), pool=pool, context=context, eos_ids=[EOS])

    return make


@pytest.fixture(scope="module")
def shared(make_engine: MakeEngine) -> Iterator[TransformersEngine]:
    """One engine for the tests that leave it as they found it."""
    engine = make_engine()
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: TransformersEngine) -> Iterator[TransformersEngine]:
    """Check that a test leaves the engine empty: nothing running, all blocks free."""
    yield shared
    shared.poll(0.0)
    stats = shared.stats()
    assert (stats.running, stats.waiting, stats.kv_percent) == (0, 0, 0)


def test_it_is_a_token_engine(engine: TransformersEngine) -> None:
    """The class fulfils the protocol, and says how much it holds."""
    assert isinstance(engine, TokenEngine)
    assert engine.capacity().slots == 8
    assert engine.capacity().context == 512


def test_greedy_equals_generate_around_block_borders(
    make_engine: MakeEngine, load_model: LoadModel, engine: TransformersEngine
) -> None:
    """Whatever the prompt's length, in one batch, and with prefill cut into chunks: what `generate` gives alone."""
    import torch

    oracle = load_model()
    oracle.generation_config.eos_token_id = None
    lengths = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK, 3 * BLOCK + 1, 130]
    requests = [ask(ticket=length, length=length, tokens=BLOCK + 2) for length in lengths]

    together = run(engine, requests)
    chunked_engine = make_engine(chunk=16)
    chunked = run(chunked_engine, requests)
    chunked_engine.close()

    for request in requests:
        ids = torch.tensor([request.prompt_ids])
        mask = torch.ones_like(ids)
        output = oracle.generate(ids, attention_mask=mask, max_new_tokens=BLOCK + 2, do_sample=False)
        expected = output[0, len(request.prompt_ids) :].tolist()
        assert together[request.ticket].token_ids == chunked[request.ticket].token_ids == expected


def test_same_seed_gives_the_same_tokens_alone_and_in_a_mixed_batch(engine: TransformersEngine) -> None:
    """Greedy, sampled, limited and penalised neighbours do not change a token, nor does the order of submission."""
    requests = requests_of_all_kinds(8, vocabulary=256, tokens=16)

    together = run(engine, requests)
    backwards = run(engine, requests[::-1])

    assert together == backwards == {request.ticket: alone(engine, request) for request in requests}
    assert engine.stats().largest_batch == 8


def test_resumed_after_any_token_it_goes_on_the_same(engine: TransformersEngine) -> None:
    """A generation cut after its k-th token, for every k, and resumed from prompt and prefix, ends the same."""
    for request in requests_of_all_kinds(4, vocabulary=256, tokens=12):
        whole = alone(engine, request)
        for cut in range(1, 12):
            resumed = msgspec.structs.replace(request, resume_ids=whole.token_ids[:cut])
            assert alone(engine, resumed).token_ids == whole.token_ids[cut:], f"request {request.ticket} cut at {cut}"


def test_seeds_differ(engine: TransformersEngine) -> None:
    """Equal prompts with other seeds take other ways; with equal seeds the same."""
    sampled = [ask(ticket=1, sampling=SamplingParams(temperature=1.0, seed=seed)) for seed in (1, 1, 2, 2**62)]
    outcomes = [alone(engine, request).token_ids for request in sampled]

    assert outcomes[0] == outcomes[1]
    assert len({tuple(outcome) for outcome in outcomes}) == 3


def test_stop_ids_end_an_answer_and_are_reported(engine: TransformersEngine) -> None:
    """The stop id is the last token; before `min_new_tokens` it is not drawn at all."""
    plain = alone(engine, ask()).token_ids
    stop = plain[4]

    stopped = alone(engine, ask(stop_ids=[stop]))
    later = alone(engine, ask(stop_ids=[stop], min_new_tokens=10))

    assert (stopped.token_ids, stopped.finish_reason) == (plain[: plain.index(stop) + 1], "stop")
    assert stop not in later.token_ids[:10]
    assert len(later.token_ids) >= 10


def test_the_models_own_eos_stops_unless_ignored(engine: TransformersEngine) -> None:
    """EOS comes from the model's configuration; the request need not name it."""
    biased = SamplingParams(temperature=0.0, logit_bias={EOS: 100.0})

    assert alone(engine, ask(sampling=biased, ignore_eos=False)).token_ids == [EOS]
    assert alone(engine, ask(sampling=biased, ignore_eos=True)).token_ids == [EOS] * 12


def test_logprobs_name_the_token_and_the_likeliest(engine: TransformersEngine) -> None:
    """Of the model's distribution, before temperature and noise."""
    greedy = alone(engine, ask(sampling=SamplingParams(temperature=0.0, logprobs=2))).logprobs
    sampled = alone(engine, ask(sampling=SamplingParams(temperature=1.5, seed=3, logprobs=0)))

    assert all(len(one) == 2 and max(one.values()) < 0.0 for one in greedy)
    assert [list(one) for one in sampled.logprobs] == [[token_id] for token_id in sampled.token_ids]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("prompt_ids is empty", {"prompt_ids": []}),
        ("513 tokens, the context is 512", {"prompt_ids": prompt(513)}),
        ("512 tokens, the context is 512", {"prompt_ids": prompt(512)}),
        ("prompt_ids is 512", {"prompt_ids": [512]}),
        ("prompt_ids is -1", {"prompt_ids": [-1]}),
        ("max_new_tokens is 0", {"max_new_tokens": 0}),
        ("logprobs is 21", {"sampling": SamplingParams(logprobs=21)}),
        ("top_p is 0.0", {"sampling": SamplingParams(top_p=0.0)}),
    ],
)
def test_what_would_kill_the_loop_is_refused(engine: TransformersEngine, words: str, changes: dict[str, Any]) -> None:
    """The words name the field and the numbers; the engine serves on."""
    with pytest.raises(RequestRefusedError, match=words):
        engine.submit(msgspec.structs.replace(ask(), **changes))

    assert alone(engine, ask(tokens=2)).finish_reason == "length"


def test_a_prompt_that_leaves_room_for_one_token_gets_one(engine: TransformersEngine) -> None:
    """One less than the context in, one out, whatever was asked for."""
    outcome = alone(engine, ask(length=511, tokens=100))

    assert (len(outcome.token_ids), outcome.finish_reason) == (1, "length")


def test_what_was_finished_before_ends_at_once(engine: TransformersEngine) -> None:
    """The node before was lost between its last token and its last word."""
    limit = alone(engine, ask(tokens=3, resume_ids=[1, 2, 3]))
    stop = alone(engine, ask(tokens=9, resume_ids=[1, 2], stop_ids=[2]))

    assert (limit.token_ids, limit.finish_reason) == ([], "length")
    assert (stop.token_ids, stop.finish_reason) == ([], "stop")


def test_a_full_engine_says_so(engine: TransformersEngine) -> None:
    """Slots bound what is held; the next one is for the caller to keep."""
    for ticket in range(8):
        engine.submit(ask(ticket=ticket))

    with pytest.raises(EngineFullError):
        engine.submit(ask(ticket=8))

    for ticket in range(8):
        engine.cancel(ticket)
    assert sorted(event.ticket for event in engine.poll(0.0)) == list(range(8))


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_cancel_gives_one_last_event_and_leaves_neighbours_alone(engine: TransformersEngine, steps: int) -> None:
    """Waiting, in prefill, decoding; twice; and unknown tickets are ignored."""
    neighbour, victim = ask(ticket=1), ask(ticket=2, length=300, tokens=50)
    expected = alone(engine, neighbour)
    for request in (neighbour, victim):
        engine.submit(request)
    events = [event for _ in range(steps) for event in engine.poll(0.0)]

    for ticket in (2, 2, 77):
        engine.cancel(ticket)
    while not any(event.ticket == 1 and event.finish_reason for event in events):
        events += engine.poll(0.0)

    assert [event.finish_reason for event in events if event.ticket == 2 and event.finish_reason] == ["cancelled"]
    assert [token_id for event in events if event.ticket == 1 for token_id in event.token_ids] == expected.token_ids


def test_a_freed_ticket_may_be_used_again_at_once(engine: TransformersEngine) -> None:
    """Cancelled and submitted between two steps: the old one's end does not hit the new one."""
    expected = alone(engine, ask())
    engine.submit(ask(tokens=40))
    engine.poll(0.0)
    engine.cancel(1)
    engine.submit(ask())

    events = engine.poll(0.0)
    while events[-1].finish_reason in {None, "cancelled"}:
        events += engine.poll(0.0)

    again = [token_id for event in events[1:] for token_id in event.token_ids]
    assert events[0].finish_reason == "cancelled"
    assert again == expected.token_ids


def test_a_pool_too_small_for_all_preempts_and_changes_no_token(
    make_engine: MakeEngine, engine: TransformersEngine
) -> None:
    """Requests that are put back and prefilled again go on with the token they would have had."""
    requests = requests_of_all_kinds(6, vocabulary=256, tokens=90)
    small = make_engine(blocks=10, context=200)

    outcomes = run(small, requests)

    assert outcomes == run(engine, requests)
    small.close()


def test_cancelling_the_running_wakes_the_preempted(make_engine: MakeEngine) -> None:
    """5.17 admits nobody after a preemption until a request finishes: none does if all that run are cancelled."""
    small = make_engine(blocks=10, context=200)
    for ticket in range(6):
        small.submit(ask(ticket=ticket, length=40, tokens=120))
    while small.stats().waiting == 0 or small.stats().running == 0 or small.stats().steps < 60:
        small.poll(0.0)
    running = [ticket for ticket in range(6) if is_running(small, ticket)]

    for ticket in running:
        small.cancel(ticket)
    events = small.poll(0.0)
    for _ in range(3):
        events += small.poll(0.0)

    assert 0 < len(running) < 6
    assert {event.ticket for event in events if event.token_ids} <= set(range(6)) - set(running)
    assert any(event.token_ids for event in events)
    small.close()


def is_running(engine: TransformersEngine, ticket: int) -> bool:
    """Tell whether a request holds blocks."""
    live = engine._by_ticket[ticket]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - no door shows it
    batch = engine._batch  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - no door shows it
    return batch.holds_blocks(live.key)


def test_a_step_that_raises_ends_the_engine(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing more is made or taken in: the process ends, and the requests go on elsewhere."""
    broken = make_engine()
    for ticket in (1, 2):
        broken.submit(ask(ticket=ticket))
    broken.poll(0.0)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setattr(broken._batch._model, "forward", fail)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    with pytest.raises(EngineFatalError, match="no such kernel"):
        broken.poll(0.0)
    with pytest.raises(EngineFatalError):
        broken.poll(0.0)
    with pytest.raises(EngineFatalError):
        broken.submit(ask(ticket=3))
    broken.close()


def test_close_with_work_pending_is_quick_and_leaves_no_thread(make_engine: MakeEngine) -> None:
    """Nothing keeps the process alive."""
    before = threading.active_count()
    busy = make_engine()
    for ticket in range(8):
        busy.submit(ask(ticket=ticket, length=300, tokens=200))
    busy.poll(0.0)

    started = time.monotonic()
    busy.close()

    assert time.monotonic() - started < 2.0
    assert threading.active_count() == before


def test_nothing_is_left_of_many_requests(engine: TransformersEngine) -> None:
    """Of 150 requests, a third cancelled, no record stays (the fixture counts blocks)."""
    for first in range(0, 150, 6):
        tickets = range(first, first + 6)
        for ticket in tickets:
            engine.submit(ask(ticket=ticket, length=1 + ticket % 70, tokens=3))
        engine.poll(0.0)
        for ticket in tickets[::3]:
            engine.cancel(ticket)
        finished = 0
        while finished < 6:
            finished += sum(event.finish_reason is not None for event in engine.poll(0.0))

    assert not engine._live  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a leak shows nowhere else
    assert not engine._by_ticket  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def spec(path: Path, **changes: object) -> EngineSpec:
    """Describe an engine on CPU."""
    plain = EngineSpec(
        engine="transformers",
        model="tiny-random",
        model_path=str(path),
        device="cpu",
        dtype="auto",
        max_model_len=0,
        batch_max_size=8,
        batch_max_latency_ms=50,
        slots=4,
    )
    return msgspec.structs.replace(plain, **changes)


def test_factory_loads_warms_up_and_reports(model_path: Path) -> None:
    """The context is the model's or the shorter one asked for; the pool holds every slot if memory bears it."""
    heard: list[tuple[str, float]] = []

    engine = factory(spec(model_path, max_model_len=300), lambda phase, percent: heard.append((phase, percent)))

    assert heard[0] == ("loading", 0.0)
    assert heard[-1] == ("warming", 100.0)
    assert len([percent for phase, percent in heard if phase == "loading"]) > 20
    assert (engine.capacity().slots, engine.capacity().context) == (4, 300)
    assert engine.capacity().kv_tokens >= 4 * 300
    engine.close()


def test_factory_refuses_what_it_does_not_know(model_path: Path) -> None:
    """A misspelt option or dtype is an error, not a default."""
    with pytest.raises(ValueError, match="blok"):
        factory(spec(model_path, options={"blok": "16"}), lambda _phase, _percent: None)
    with pytest.raises(ValueError, match="int3"):
        factory(spec(model_path, dtype="int3"), lambda _phase, _percent: None)


def test_limits_keep_the_sets_that_transformers_keeps() -> None:
    """top-k, top-p and min-p mean what `generate` means by them."""
    import numpy as np
    import torch

    from zmqrt.worker.engines.sampling import keep_likely

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
