"""A request in vLLM's words: what is left of it, and what must not change because a part was made elsewhere."""

from __future__ import annotations

from support.engines import ask
from zmqrt.worker.engines.base import SamplingParams
from zmqrt.worker.engines.vllm_parameters import sampling_arguments


def test_all_that_is_asked_for_is_passed_on() -> None:
    """By vLLM's names; text and stop strings are not its affair, and the agent names all stop ids."""
    sampling = SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, seed=5, logprobs=3, logit_bias={4: -1.0}
    )
    request = ask(tokens=12, sampling=sampling, stop_ids=[2, 3], min_new_tokens=4, ignore_eos=False)

    assert sampling_arguments(request, 12, has_keyed_noise=False) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": {4: -1.0},
        "seed": 5,
        "logprobs": 3,
        "max_tokens": 12,
        "min_tokens": 4,
        "stop_token_ids": [2, 3],
        "ignore_eos": True,
        "detokenize": False,
    }


def test_what_was_made_elsewhere_counts() -> None:
    """Towards the most and the fewest new tokens."""
    arguments = sampling_arguments(ask(tokens=12, resume_ids=[7, 7, 9], min_new_tokens=5), 12, has_keyed_noise=False)

    assert (arguments["max_tokens"], arguments["min_tokens"]) == (9, 2)
    assert sampling_arguments(ask(resume_ids=[1] * 8, min_new_tokens=5), 12, has_keyed_noise=True)["min_tokens"] == 0


def test_a_generator_that_begins_anew_does_not_draw_its_first_noise_again() -> None:
    """The seed of a resumed request is another one, the same each time; where noise has positions it stays."""
    whole = ask(sampling=SamplingParams(seed=77))
    resumed = ask(sampling=SamplingParams(seed=77), resume_ids=[1, 2])
    further = ask(sampling=SamplingParams(seed=77), resume_ids=[1, 2, 3])

    seeds = [sampling_arguments(one, 12, has_keyed_noise=False)["seed"] for one in (whole, resumed, further, resumed)]
    assert seeds[0] == 77
    assert seeds[1] == seeds[3]
    assert len(set(seeds)) == 3
    assert sampling_arguments(resumed, 12, has_keyed_noise=True)["seed"] == 77


def test_nobody_has_a_seed_who_needs_none_or_whom_it_would_harm() -> None:
    """A greedy request, and any where vLLM would die of one."""
    greedy, sampled = ask(sampling=SamplingParams(temperature=0.0, seed=7)), ask(sampling=SamplingParams(seed=7))

    assert sampling_arguments(greedy, 12, has_keyed_noise=True)["seed"] is None
    assert sampling_arguments(sampled, 12, has_keyed_noise=False, takes_seeds=False)["seed"] is None


def test_tokens_that_were_made_elsewhere_are_penalised() -> None:
    """VLLM takes them for part of the prompt, so what they are worth less is a bias."""
    sampling = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25, logit_bias={7: 1.0})
    bias = sampling_arguments(ask(sampling=sampling, resume_ids=[7, 7, 9]), 12, has_keyed_noise=True)["logit_bias"]

    assert bias == {7: 1.0 - 0.25 - 1.0, 9: -0.25 - 0.5}
    many = ask(sampling=sampling, resume_ids=list(range(3000)))
    assert len(sampling_arguments(many, 4000, has_keyed_noise=True)["logit_bias"]) <= 1024
