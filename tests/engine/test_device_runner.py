"""What runs on a GPU, call by call on a CPU: slots, sampler and steps launched ahead, on a real model.

The one thing that is another here is the attention operation, of which CPU builds of torch have none: its definition in
plain arithmetic stands in. `bench/gpu_first_run.py` tries the operation itself.
"""

from __future__ import annotations

import gc
import random
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from support.engines import ask, requests_of_all_kinds, run, tokens_of
from support.tiny import tiny_model
from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate import device_runner, slot_sampler
from zmqrt.worker.engines.generate.attention import Attention, AttentionShape
from zmqrt.worker.engines.generate.device_runner import DeviceRunner
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.flash import (
    FlashAttention,
    Layout,
    Operation,
    difference,
    flash,
    key_bounds,
    plain,
    why_not,
)
from zmqrt.worker.engines.generate.hf_decoder import HfDecoder
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.engines.generate.llama import LlamaDecoder
from zmqrt.worker.engines.generate.schedule import KvCopy, SchedulerLimits
from zmqrt.worker.engines.generate.sequence_table import RECORDED, SamplingMode, mode_for
from zmqrt.worker.engines.generate.torch_runner import Decoder, TorchRunner
from zmqrt.worker.engines.generate.transfers import Arrival, Transfers
from zmqrt.worker.engines.sampling_state import SamplingState

pytestmark = pytest.mark.integration
Make = Callable[..., GenerateEngine]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Load the tiny model."""
    folder: Path = tiny_model(tmp_path_factory.mktemp("models"))

    def loaded() -> Any:
        return untyped("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    return loaded


@pytest.fixture(scope="module")
def make(load: Callable[[], Any]) -> Make:
    """Make engines around either runner."""

    def made(
        kind: str = "device", *, decoder: Callable[[Any], Decoder] = LlamaDecoder, kv_tokens: int = 4096, **limits: Any
    ) -> GenerateEngine:
        usual: dict[str, Any] = {"slots": 8, "context": 512, "chunk_tokens": 64, "depth": 1 if kind == "torch" else 2}
        bounds = SchedulerLimits(**{**usual, **limits})
        runner: TorchRunner | DeviceRunner
        if kind == "torch":
            runner = TorchRunner(decoder(load()), kv_tokens, bounds, dtype=torch.float32, device="cpu")
        else:
            runner = DeviceRunner(
                decoder(load()), kv_tokens, bounds, dtype=torch.float32, device="cpu", operation=plain
            )
        return GenerateEngine(runner, kv_tokens=kv_tokens, limits=bounds)

    return made


SHAPED = [
    SamplingParams(temperature=0.9, seed=3, top_k=5, top_p=0.7),
    SamplingParams(temperature=1.3, seed=2**63 - 1, min_p=0.2, top_k=40),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, logit_bias={7: 4.0, 9: -100.0}),
    SamplingParams(temperature=1.1, seed=2**31, frequency_penalty=1.0, presence_penalty=-0.5, top_p=0.95),
]


def all_kinds() -> list[TokenRequest]:
    """Make plain and shaped requests, some of which must not end before they have so many tokens."""
    plain_ones = requests_of_all_kinds(8, vocabulary=256, tokens=20)
    shaped = [
        ask(ticket=100 + number, length=30 + number, tokens=20, sampling=sampling, min_new_tokens=6, stop_ids=[1, 2, 3])
        for number, sampling in enumerate(SHAPED)
    ]
    return [*plain_ones, *shaped]


QUICK = ((2, 1), (3, 16))


@pytest.fixture(scope="module")
def right(make: Make) -> dict[int, list[int]]:
    """Have the runner that asks the host each time run every kind of request, alone."""
    return {request.ticket: tokens_of(make("torch"), [request])[request.ticket] for request in all_kinds()}


@pytest.mark.parametrize(
    ("depth", "chunk"),
    [  # far ahead, and one token at a time; the other pairs of depth and size of a piece are slow
        pytest.param(depth, chunk, marks=() if (depth, chunk) in QUICK else pytest.mark.slow)
        for depth in (1, 2, 3)
        for chunk in (1, 16, 512)
    ],
)
def test_it_draws_what_the_other_runner_draws(make: Make, right: dict[int, list[int]], depth: int, chunk: int) -> None:
    """Any sampling, any neighbours, however far ahead."""
    requests = all_kinds()
    engine = make(slots=12, depth=depth, chunk_tokens=chunk)

    assert tokens_of(engine, requests) == right
    assert tokens_of(engine, requests) == right  # the second time prefixes are found
    assert engine.counts.reused_tokens > 0
    assert {one.ticket: tokens_of(engine, [one])[one.ticket] for one in requests} == right


def test_modules_of_transformers_run_on_it_too(make: Make) -> None:
    """Not only the decoder that knows its layers."""
    requests = requests_of_all_kinds(5, vocabulary=256, tokens=10)

    assert tokens_of(make(decoder=HfDecoder), requests) == tokens_of(make("torch"), requests)


def test_modules_look_at_no_position_for_a_mask(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that would make each prompt wait for all that runs."""
    looks: list[object] = []

    def look(position_ids: torch.Tensor) -> None:
        looks.append(position_ids)

    monkeypatch.setattr(untyped("transformers.masking_utils"), "find_packed_sequence_indices", look)

    assert tokens_of(make(decoder=HfDecoder), [ask(length=40)])
    assert looks == []


def test_a_request_resumed_after_any_token_goes_on_the_same(make: Make) -> None:
    """With its penalties, its noise and its minimum length."""
    engine, others = make(slots=4), all_kinds()[:2]
    for request in all_kinds()[8:]:
        whole = tokens_of(engine, [request])[request.ticket]
        for cut in (1, 5, 6, 19):
            resumed = msgspec.structs.replace(request, resume_ids=whole[:cut])
            assert tokens_of(make(slots=4), [*others, resumed])[request.ticket] == whole[cut:]


def test_logprobs_are_those_of_the_other_runner(make: Make) -> None:
    """For those who asked, whoever is beside them."""
    wants = [
        SamplingParams(temperature=1.2, seed=4, logprobs=3),
        SamplingParams(temperature=0.0, logprobs=0),
        SamplingParams(seed=1),
    ]
    requests = [ask(ticket=number, sampling=sampling) for number, sampling in enumerate(wants)]
    theirs, got = (run(make(kind), requests) for kind in ("torch", "device"))

    for ticket in range(3):
        assert got[ticket].token_ids == theirs[ticket].token_ids
        assert [sorted(one) for one in got[ticket].logprobs] == [sorted(one) for one in theirs[ticket].logprobs]
        for one, other in zip(got[ticket].logprobs, theirs[ticket].logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_a_reader_of_prompts_draws_nothing_and_takes_no_report_from_others(make: Make) -> None:
    """Two long prompts come while one decodes whose log probabilities are asked for."""
    sampling = SamplingParams(seed=1, top_p=0.8, logprobs=2)
    requests = [ask(ticket=1, length=5, tokens=30, sampling=sampling), *(ask(ticket=at, length=90) for at in (2, 3))]
    theirs, got = (run(make(kind, chunk_tokens=16), requests) for kind in ("torch", "device"))

    assert {ticket: one.token_ids for ticket, one in got.items()} == {
        ticket: one.token_ids for ticket, one in theirs.items()
    }
    assert [sorted(one) for one in got[1].logprobs] == [sorted(one) for one in theirs[1].logprobs]


def test_a_request_pays_only_for_what_drawing_it_takes() -> None:
    """Whichever is wanted, a graph of a mode that includes it is recorded; plain ones are plain."""
    wanted = [
        (SamplingParams(temperature=0.0), SamplingMode.PLAIN),
        (SamplingParams(seed=3), SamplingMode.PLAIN),
        (SamplingParams(temperature=0.0, top_k=5), SamplingMode.PLAIN),
        (SamplingParams(min_p=0.1), SamplingMode.CUT),
        (SamplingParams(presence_penalty=1.0), SamplingMode.ADJUSTED),
        (SamplingParams(logprobs=1, top_p=0.5), SamplingMode.CUT | SamplingMode.REPORTED),
    ]
    states = [SamplingState.of(ask(sampling=sampling), []) for sampling, _ in wanted]

    assert [mode_for([state]) for state in states] == [mode for _, mode in wanted]
    assert all(any(mode_for(some) in kind for kind in RECORDED) for some in ([state] for state in states))
    assert mode_for(states) in RECORDED[-1]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_whoever_comes_and_goes_changes_nothing_for_others(make: Make, right: dict[int, list[int]], seed: int) -> None:
    """Arrivals and cancels at any moment, steps read late, slots used again at once."""
    rng = random.Random(seed)
    requests = {one.ticket: one for one in all_kinds()}
    engine = make(slots=4, kv_tokens=600, context=300, chunk_tokens=16)
    made: dict[int, list[int]] = {}
    kinds: dict[int, int] = {}
    ended = 0
    for turn in range(400):
        if rng.random() < 0.3 and len(made) - ended < 4:
            kind = rng.choice(list(requests))
            kinds[turn] = kind
            made[turn] = []
            engine.submit(msgspec.structs.replace(requests[kind], ticket=turn))
        if made and rng.random() < 0.05:
            engine.cancel(rng.choice(list(made)))
        for event in engine.poll(0.0):
            made[event.ticket] += event.token_ids
            assert made[event.ticket] == right[kinds[event.ticket]][: len(made[event.ticket])]
            ended += event.finish_reason is not None
    assert ended > 20


def test_deterministic_numbers_on_it_too(make: Make) -> None:
    """Fixed passes and forced resumes: to the last bit, alone, among others, and resumed."""
    exact = {"is_deterministic": True, "chunk_tokens": 32, "slots": 8}
    request = ask(ticket=99, length=45, tokens=10, sampling=SamplingParams(temperature=1.0, seed=5, logprobs=20))
    whole = run(make(**exact), [request])[99]
    others = requests_of_all_kinds(6, vocabulary=256, tokens=8)

    together = run(make(**exact), [*others, request])[99]
    assert (together.token_ids, together.logprobs) == (whole.token_ids, whole.logprobs)
    for cut in (1, 4, 9):
        resumed = msgspec.structs.replace(request, resume_ids=whole.token_ids[:cut])
        rest = run(make(**exact), [*others, resumed])[99]
        assert (rest.token_ids, rest.logprobs) == (whole.token_ids[cut:], whole.logprobs[cut:])


class Scarce:
    """A decoder that has no memory for more than so many tokens at once."""

    def __init__(self, decoder: Decoder, most: int) -> None:
        self._decoder = decoder
        self.shape, self.vocabulary = decoder.shape, decoder.vocabulary
        self._most = most
        self.refused = 0

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute, or fail as CUDA's allocator does."""
        if len(ids) > self._most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return self._decoder.forward(ids, positions, attention, rows)


def test_out_of_memory_is_tried_piece_by_piece_and_costs_one_request_at_most(make: Make) -> None:
    """Prompts too long together run one by one; one that is too long alone ends with an error."""
    fits = [ask(ticket=1, length=30), ask(ticket=2, length=35), ask(ticket=3, length=8)]
    right = tokens_of(make("torch"), fits)
    scarce: list[Scarce] = []

    def decoder(model: Any) -> Decoder:
        scarce.append(Scarce(LlamaDecoder(model), 40))
        return scarce[0]

    engine = make(decoder=decoder, chunk_tokens=200)
    outcomes = run(engine, [*fits, ask(ticket=4, length=90)])

    assert scarce[0].refused >= 2
    assert {ticket: outcomes[ticket].token_ids for ticket in (1, 2, 3)} == right
    assert outcomes[4].finish_reason == "error"
    assert "ran out of memory at tokens 0 to 90 of the prompt" in (outcomes[4].error or "")
    assert tokens_of(engine, fits) == right
    assert engine.stats().kv_percent == 0


def test_out_of_memory_for_a_report_leaves_nothing_of_what_was_drawn_before_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places, noise and counts of what is drawn anew are those of a first time."""
    report, calls = slot_sampler._report, list[int]()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def scarce(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(tokens))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return report(logits, tokens)

    wants = [
        SamplingParams(temperature=1.2, seed=4, logprobs=3),
        SamplingParams(temperature=1.1, seed=9, frequency_penalty=1.5, repetition_penalty=1.3, logprobs=1),
    ]
    requests = [ask(ticket=number, sampling=sampling) for number, sampling in enumerate(wants)]
    requests.append(msgspec.structs.replace(requests[1], ticket=2, resume_ids=[3, 5, 3]))
    right = tokens_of(make("torch", chunk_tokens=200), requests)
    monkeypatch.setattr(slot_sampler, "_report", scarce)

    assert tokens_of(make(chunk_tokens=200), requests) == right
    assert calls[:4] == [3, 1, 1, 1]  # all at once, then one by one


class Event:
    """One that happens after so many looks."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def query(self) -> bool:
        """Look."""
        self._looks -= 1
        return self._looks < 0


def test_a_short_wait_is_no_sleep_and_a_hung_device_no_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest sleep is half as long as a step may take; whoever asked is asked back after its time."""
    now, naps = 0.0, list[float]()

    def clock() -> float:
        nonlocal now
        now += 0.00001
        return now

    def sleep(seconds: float) -> None:
        nonlocal now
        naps.append(seconds)
        now += seconds

    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "sleep", sleep)

    assert Arrival([], Event(10)).wait(0.05)
    assert naps == []
    assert not Arrival([], Event(10**9)).wait(0.05)
    assert 100 < len(naps) < 1000


def test_what_a_pass_without_memory_held_is_free_when_memory_is_given_back(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the handler the error would still hold all that the pass had got."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    class Hungry(Scarce):
        def forward(
            self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention, rows: torch.Tensor | None
        ) -> torch.Tensor:
            hidden = torch.zeros(len(ids))
            held.append(weakref.ref(hidden))
            return super().forward(ids, positions, attention, rows)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[-1]() is not None))

    def decoder(model: Any) -> Decoder:
        return Hungry(LlamaDecoder(model), 20)

    engine = make(decoder=decoder, chunk_tokens=200)
    run(engine, [ask(ticket=1, length=30)])

    assert alive == [False]


def test_nothing_is_let_go_while_the_device_uses_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of it is, even if the device has failed."""
    engine = make()
    runner: Any = engine.runner
    pool = weakref.ref(runner._attention)  # noqa: SLF001 - what holds the memory
    del runner
    settled: list[bool] = []

    def settle(_self: Transfers) -> None:
        settled.append(pool() is not None)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Transfers, "settle", settle)
    with pytest.raises(RuntimeError, match="illegal"):
        engine.close()
    gc.collect()

    assert settled == [True]
    assert pool() is None


def test_the_views_of_a_layer_are_made_once() -> None:
    """A pass asks for them in every layer; each is a part of the one pool."""
    attention = FlashAttention(AttentionShape(3, 4, 2, 16), 10, dtype=torch.float32, device="cpu", operation=plain)
    attention.keys(1)[4] = 1.0
    attention.copy(KvCopy(source=4, target=7, count=1))

    assert attention.keys(1) is attention.keys(1)
    assert attention.values(2) is attention.values(2)
    assert attention.keys(1)[7].eq(1.0).all()
    assert attention.values(1).eq(0.0).all()


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_steps_are_made_for_the_longest_sequence_there_is(
    make: Make, load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, *, is_deterministic: bool
) -> None:
    """The least bound that holds it; where every bit counts, always the same one: neighbours must not choose it."""
    told: list[tuple[int, int]] = []

    def operation(query: Any, keys: Any, values: Any, layout: Layout, scale: float | None) -> torch.Tensor:
        if layout.most_queries == 1:
            told.append((int(layout.lengths.max()), layout.most_keys))
        return plain(query, keys, values, layout, scale)

    def bounds(*_: object) -> list[int]:
        return [512, 30, 60]

    monkeypatch.setattr(device_runner, "key_bounds", bounds)
    limits = SchedulerLimits(slots=12, context=512, chunk_tokens=64, depth=2, is_deterministic=is_deterministic)
    runner = DeviceRunner(LlamaDecoder(load()), 4096, limits, dtype=torch.float32, device="cpu", operation=operation)
    engine = GenerateEngine(runner, kv_tokens=4096, limits=limits)

    requests = [ask(ticket=1, length=20, tokens=50), ask(ticket=2, length=5, tokens=20)]

    assert tokens_of(engine, requests) == tokens_of(make("torch"), requests)
    least = [512 if is_deterministic else min(bound for bound in bounds() if bound >= longest) for longest, _ in told]
    assert [most_keys for _, most_keys in told] == least
    assert len(set(least)) == (1 if is_deterministic else 3)
    assert runner.frames == (1 if is_deterministic else 5 * 3)


@pytest.mark.parametrize(
    ("rows", "context", "bounds"),
    [
        (1, 131072, [131072, 16384, 2048]),
        (26, 131072, [131072, 16384, 2048]),
        (27, 131072, [131072]),  # 27 x 8 heads fill an H200 without splits
        (1, 40960, [40960, 5120]),
        (1, 8192, [8192]),
    ],
)
def test_lengths_that_steps_of_torchs_operation_are_made_for(
    rows: int, context: int, bounds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few, an eighth of each other, and only where the operation splits; another operation needs one."""

    def properties(_device: object) -> SimpleNamespace:
        return SimpleNamespace(multi_processor_count=132)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)

    assert key_bounds(flash, rows, 8, context, "cuda:0") == bounds
    assert key_bounds(plain, rows, 8, context, "cpu") == [context]


# --- the operation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("is_piece", [False, True])
def test_the_self_test_passes_what_is_right_and_finds_what_is_wrong(heads: int, *, is_piece: bool) -> None:
    """Starts that are ignored, lengths that are one off, a pool that is not a number."""
    shape = AttentionShape(layers=1, heads=heads, kv_heads=2, head_size=16)

    def off(operation: Operation) -> float:
        return difference(shape, torch.bfloat16, "cpu", is_piece=is_piece, operation=operation)

    def elsewhere(query: Any, keys: Any, values: Any, layout: Layout, scale: Any) -> torch.Tensor:
        return plain(query, keys, values, replace(layout, starts=layout.starts * 0), scale)

    def short(query: Any, keys: Any, values: Any, layout: Layout, scale: Any) -> torch.Tensor:
        return plain(query, keys, values, replace(layout, lengths=(layout.lengths - 1).clamp(min=1)), scale)

    def nothing(query: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return query * torch.nan

    assert off(plain) == 0.0
    assert all(off(wrong) > 0.02 for wrong in (elsewhere, short, nothing))


def test_a_cpu_has_no_such_operation_and_that_is_said() -> None:
    """What is chosen then is the attention that every device has."""
    shape = AttentionShape(layers=1, heads=4, kv_heads=2, head_size=16)

    assert "is none of the types" in (why_not(shape, torch.float32, "cpu") or "")
    assert "heads of 12" in (why_not(AttentionShape(1, 4, 2, 12), torch.bfloat16, "cpu") or "")
    assert why_not(shape, torch.bfloat16, "cpu") is not None
