"""The error table: complete, and the same for a peer that knows fewer reasons than we do."""

from __future__ import annotations

import pytest

from zmqrt.protocol.errors import (
    TABLE,
    BusyError,
    ConnectError,
    ErrorKind,
    clip,
    kind_of,
    request_error,
)
from zmqrt.protocol.limits import MAX_TEXT_CHARS


def test_every_kind_has_its_row() -> None:
    """No failure is without a code, statuses and an exit code."""
    assert set(TABLE) == set(ErrorKind)


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_a_kind_survives_the_wire(kind: ErrorKind) -> None:
    """Code and reason name the same kind again, and it becomes an exception with that code."""
    assert kind_of(TABLE[kind].code, kind.value) is kind
    assert request_error(kind, "words").code == TABLE[kind].code


def test_an_unknown_reason_falls_back_on_its_code() -> None:
    """A newer peer's reason still means what its code means; an unknown code means the node failed."""
    assert kind_of(429, "new_kind_of_limit") is ErrorKind.QUEUE_FULL
    assert kind_of(504, "queue_full") is ErrorKind.DEADLINE
    assert kind_of(599, "?") is ErrorKind.MODEL_RAISED


def test_slash_infer_never_answers_502() -> None:
    """The v1 contract knows 500 and 503 for failed nodes."""
    assert 502 not in {row.infer_status for row in TABLE.values()}


def test_what_the_model_raised_is_never_run_again() -> None:
    """Neither broker nor client repeats it."""
    row = TABLE[ErrorKind.MODEL_RAISED]

    assert (row.redispatch, row.resend) == (False, False)


def test_an_error_says_what_and_which_request() -> None:
    """The sentence, the request, the numbers."""
    error = request_error(ErrorKind.QUEUE_FULL, "the queue is full", request_id="ab12", retry_after_s=1.5)

    assert isinstance(error, BusyError)
    assert str(error) == "the queue is full (request ab12)"
    assert (error.retryable, error.retry_after_s, error.exit_code) == (True, 1.5, 75)


def test_exit_codes_of_a_failed_connection() -> None:
    """Unreachable is 69; refused for its keys is 77."""
    assert ConnectError("x").exit_code == 69
    assert ConnectError("x", not_authorised=True).exit_code == 77


def test_words_for_a_header_are_clipped_and_encodable() -> None:
    """A long or broken text still fits the field."""
    assert len(clip("x" * 10_000)) == MAX_TEXT_CHARS
    assert clip("\ud800").encode() == b"?"
