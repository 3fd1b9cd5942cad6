"""What each field of SamplingParams does to one row, and that the batch does the same to every row."""

import random

import msgspec
import numpy as np
import pytest

from support.reference_sampling import adjust, choose, keep_likely, token_words
from zmqrt.worker.engines.base import RequestRefusedError, SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.batch_sampler import BatchSampler
from zmqrt.worker.engines.sampling_state import SamplingState, check

VOCABULARY = 64
LOGITS = np.linspace(-3.0, 3.0, VOCABULARY).astype(np.float32)
BEST = VOCABULARY - 1


def request(*, resume_ids: list[int] | None = None, min_new_tokens: int = 0, **sampling: object) -> TokenRequest:
    """Ask for tokens after a prompt that holds the best token of LOGITS."""
    return TokenRequest(
        ticket=1,
        prompt_ids=[BEST, 3],
        resume_ids=resume_ids or [],
        max_new_tokens=100,
        min_new_tokens=min_new_tokens,
        sampling=msgspec.structs.replace(SamplingParams(), **sampling),
    )


def draw(asked: TokenRequest, stop_ids: tuple[int, ...] = ()) -> SamplingState:
    """Stand before the next token of a request."""
    return SamplingState.of(asked, stop_ids)


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    """Without temperature there is no noise, and no dependence on the order of a reduction."""
    words = token_words(VOCABULARY)

    assert choose(LOGITS, draw(request(temperature=0.0)), words) == BEST
    assert choose(np.zeros(VOCABULARY, np.float32), draw(request(temperature=0.0)), words) == 0


def test_repetition_penalty_weakens_prompt_and_output() -> None:
    """Positive logits are divided, negative ones multiplied, each token once."""
    scores = adjust(LOGITS.copy(), draw(request(resume_ids=[0, 0], repetition_penalty=2.0)))

    assert scores[BEST] == pytest.approx(LOGITS[BEST] / 2)
    assert scores[3] == pytest.approx(LOGITS[3] * 2)
    assert scores[0] == pytest.approx(LOGITS[0] * 2)
    assert scores[10] == LOGITS[10]


def test_presence_and_frequency_count_the_output_alone() -> None:
    """Presence counts once, frequency each time; the prompt does not count."""
    scores = adjust(LOGITS.copy(), draw(request(resume_ids=[5, 5, 7], presence_penalty=1.0, frequency_penalty=0.5)))

    assert scores[5] == pytest.approx(LOGITS[5] - 2.0)
    assert scores[7] == pytest.approx(LOGITS[7] - 1.5)
    assert scores[BEST] == LOGITS[BEST]


def test_bias_and_minimum_length() -> None:
    """A bias is added; stop ids are shut out until enough tokens are out."""
    short = draw(request(min_new_tokens=2, resume_ids=[9], logit_bias={4: 50.0}), stop_ids=(4, BEST))

    scores = adjust(LOGITS.copy(), short)
    short.take(9)
    later = adjust(LOGITS.copy(), short)

    assert scores[4] == scores[BEST] == -np.inf
    assert later[4] == pytest.approx(LOGITS[4] + 50.0)
    assert later[BEST] == LOGITS[BEST]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (SamplingParams(), 64),
        (SamplingParams(top_k=5), 5),
        (SamplingParams(top_k=1000), 64),
        (SamplingParams(top_p=1e-6), 1),
        (SamplingParams(min_p=1.0), 1),
        (SamplingParams(min_p=0.5), 8),
        (SamplingParams(top_p=0.5), 8),
        (SamplingParams(top_k=10, top_p=0.5), 4),
        (SamplingParams(top_k=3, min_p=0.5), 3),
    ],
)
def test_limits_keep_the_likeliest(sampling: SamplingParams, kept: int) -> None:
    """Each limit keeps so many of a row whose neighbours differ by a tenth (6/63) in their logits."""
    scores = keep_likely(LOGITS, sampling)

    assert np.isfinite(scores).sum() == kept
    assert np.isfinite(scores[VOCABULARY - kept :]).all()


def random_request(rnd: random.Random) -> TokenRequest:
    """Mix all fields, each often at its default."""
    return request(
        resume_ids=[rnd.randrange(VOCABULARY) for _ in range(rnd.choice([0, 20]))],
        min_new_tokens=rnd.choice([0, 30]),
        temperature=rnd.choice([0.0, 0.3, 1.0, 2.0]),
        top_k=rnd.choice([0, 0, 1, 5, 50]),
        top_p=rnd.choice([1.0, 1.0, 0.9, 0.3, 0.01]),
        min_p=rnd.choice([0.0, 0.0, 0.1]),
        repetition_penalty=rnd.choice([1.0, 1.3]),
        presence_penalty=rnd.choice([0.0, 1.0]),
        frequency_penalty=rnd.choice([0.0, 0.5]),
        logit_bias=rnd.choice([{}, {3: 5.0, 9: -100.0}]),
        seed=rnd.randrange(2**63),
    )


def test_batch_chooses_what_each_row_alone_would() -> None:
    """Rows of every kind side by side get the tokens of the one-row reference."""
    rnd, noise = random.Random(1), np.random.RandomState(1)
    sampler, words = BatchSampler(VOCABULARY, "cpu"), token_words(VOCABULARY)
    import torch

    for _ in range(60):
        draws = [draw(random_request(rnd), stop_ids=(0, 5, 10**6)) for _ in range(rnd.randint(1, 9))]
        logits = (noise.standard_normal((len(draws), VOCABULARY)) * 3).astype(np.float32)

        best = sampler.scores(torch.tensor(logits), draws).argmax(dim=-1)

        assert [int(one) for one in best] == [choose(row, one, words) for row, one in zip(logits, draws, strict=True)]


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("temperature", request(temperature=float("nan"))),
        ("top_p", request(top_p=0.0)),
        ("top_k", request(top_k=-1)),
        ("min_p", request(min_p=1.5)),
        ("repetition_penalty", request(repetition_penalty=0.0)),
        ("seed", request(seed=-1)),
        ("logit_bias", request(logit_bias={VOCABULARY: 1.0})),
        ("resume_ids", request(resume_ids=[-1])),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_by_name(field: str, asked: TokenRequest) -> None:
    """The words name the field and its value; an id outside the vocabulary never reaches a model."""
    with pytest.raises(RequestRefusedError, match=field):
        check(asked, vocabulary=VOCABULARY)
