"""With `deterministic=1` the numbers of a request are the same to the last bit, whoever else is there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from support.engines import Outcome, ask, describe, prompt, requests_of_all_kinds, run
from support.tiny import silent, tiny_model
from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.factory import factory

pytestmark = pytest.mark.integration
CHUNK = 32
# The coarser type shows a difference sooner; the finer one is tried when there is time.
DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model."""
    return tiny_model(tmp_path_factory.mktemp("models"))


def make(folder: Path, dtype: str, **options: str) -> GenerateEngine:
    """Make an engine of eight rows."""
    options = {"deterministic": "1", "chunk": str(CHUNK), **options}
    return factory(describe(folder, dtype=dtype, options=options), silent)


def numbers(outcome: Outcome) -> list[tuple[int, dict[int, float]]]:
    """Return each token with its log probabilities, which show every bit."""
    return list(zip(outcome.token_ids, outcome.logprobs, strict=True))


def subject(length: int) -> TokenRequest:
    """Ask for sampled tokens and all their log probabilities."""
    sampling = SamplingParams(temperature=1.0, seed=77, logprobs=20)
    return ask(ticket=1000, tokens=14, prompt_ids=prompt(length), sampling=sampling)


@DTYPES
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_neighbours_change_no_bit(model_path: Path, dtype: str, length: int) -> None:
    """Alone, and as the first, the fourth and the last of eight, which come and go."""
    request = subject(length)
    alone = numbers(run(make(model_path, dtype), [request])[1000])
    others = requests_of_all_kinds(7, vocabulary=256, tokens=9)

    for at in (0, 3, 7):
        together = run(make(model_path, dtype), [*others[:at], request, *others[at:]])
        assert numbers(together[1000]) == alone


@DTYPES
def test_a_resumed_request_goes_on_with_every_bit(model_path: Path, dtype: str) -> None:
    """After any token, on an engine that is busy with others, and one that has seen the prompt."""
    request = subject(CHUNK + 9)
    engine = make(model_path, dtype)
    whole = numbers(run(engine, [request])[1000])
    others = requests_of_all_kinds(5, vocabulary=256, tokens=6)

    for cut in range(1, 14):
        resumed = msgspec.structs.replace(request, resume_ids=[token for token, _ in whole[:cut]])
        assert numbers(run(make(model_path, dtype, reuse="0"), [*others, resumed])[1000]) == whole[cut:]
        assert numbers(run(engine, [resumed])[1000]) == whole[cut:]


def test_prefixes_are_reused_in_whole_pieces_and_change_no_bit(model_path: Path) -> None:
    """Of finished requests and of running ones; less than a piece in common is computed anew."""
    engine = make(model_path, "bfloat16")
    shared = prompt(2 * CHUNK + 20)
    requests = [
        msgspec.structs.replace(subject(1), ticket=number, prompt_ids=ids)
        for number, ids in enumerate([shared, [*shared, 7, 8], shared[: CHUNK + 5], shared[: CHUNK - 1], shared])
    ]
    right = [numbers(run(make(model_path, "bfloat16", reuse="0"), [one])[one.ticket]) for one in requests]

    assert [numbers(run(engine, [one])[one.ticket]) for one in requests] == right
    assert engine.counts.reused_tokens == (2 + 1 + 0 + 2) * CHUNK
    together = run(engine, requests)
    assert [numbers(together[one.ticket]) for one in requests] == right


@pytest.fixture
def two_threads() -> Iterator[dict[str, str]]:
    """Return the option; torch's threads are the whole process's, and go back behind the test."""
    before = torch.get_num_threads()
    yield {"threads": "2"}
    torch.set_num_threads(before)


@DTYPES
def test_with_several_threads_no_bit_changes_either(tmp_path: Path, dtype: str, two_threads: dict[str, str]) -> None:
    """Products large enough to be shared among threads: alone, among others, and resumed."""
    folder = tiny_model(tmp_path, "hidden=512,layers=1")
    request = subject(2 * CHUNK + 5)
    whole = numbers(run(make(folder, dtype, **two_threads), [request])[1000])
    assert torch.get_num_threads() == 2
    others = requests_of_all_kinds(7, vocabulary=256, tokens=9)

    for cut in (0, 9):
        resumed = msgspec.structs.replace(request, resume_ids=[token for token, _ in whole[:cut]])
        together = run(make(folder, dtype, **two_threads), [*others[:3], resumed, *others[3:]])
        assert numbers(together[1000]) == whole[cut:]


@DTYPES
def test_machines_of_other_core_counts_agree_to_the_last_bit(
    tmp_path: Path, dtype: str, two_threads: dict[str, str]
) -> None:
    """What the environment gives as threads is not looked at: products that are shared among them round otherwise."""
    folder = tiny_model(tmp_path, "hidden=512,layers=1")
    request = subject(2 * CHUNK + 5)
    found: list[list[tuple[int, dict[int, float]]]] = []
    for threads in (1, int(two_threads["threads"])):
        torch.set_num_threads(threads)
        engine = make(folder, dtype)
        assert torch.get_num_threads() == 1
        found.append(numbers(run(engine, [request])[1000]))

    assert found[0] == found[1]


def test_without_it_the_batch_shows_in_the_last_bits(model_path: Path) -> None:
    """What the mode is for: were the usual way as exact, it would be of no use. Only bfloat16 is so coarse here."""
    rng = random.Random(3)
    request = subject(40)
    plain = {"deterministic": "0", "chunk": "16"}
    alone = numbers(run(make(model_path, "bfloat16", **plain), [request])[1000])
    others = [ask(ticket=number, length=rng.randint(1, 60), tokens=20) for number in range(7)]

    together = numbers(run(make(model_path, "bfloat16", **plain), [*others, request])[1000])

    assert together != alone
