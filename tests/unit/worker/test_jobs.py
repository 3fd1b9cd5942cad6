"""How much of a job goes out in one PARTIAL."""

import pytest

from zmqrt.protocol import messages as m
from zmqrt.protocol.tasks import TokenLogprobs
from zmqrt.worker.jobs import Job


@pytest.mark.parametrize(("likeliest", "most"), [(0, 4096), (20, 100)])
def test_units_of_little_text_are_bounded_too(likeliest: int, most: int) -> None:
    """Ids and log probabilities are most of what such a token takes."""
    dispatch = m.Dispatch(1, "mock", 30_000, 0, 1, 0, b"r" * 16, "u", b"")
    job = Job(1, 0, dispatch, "token", 0.0)
    job.ids, job.pieces = [7] * 100_000, [""] * 100_000
    if likeliest:
        job.logprobs = [TokenLogprobs(-0.5, dict.fromkeys(range(likeliest), -1.0))] * 100_000

    assert 1 < job.end_of_partial() <= most
