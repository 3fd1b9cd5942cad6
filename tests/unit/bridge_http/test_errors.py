"""What each failure looks like over HTTP."""

import json
from typing import Any

import pytest
from starlette.responses import Response

from zmqrt.bridge_http.errors import refusal
from zmqrt.protocol.errors import TABLE, ErrorKind, request_error


def answer(error: Exception, request_id: str, path: str = "/infer") -> Response:
    """Return what is answered on a path."""
    return refusal(error, path, request_id)


def body_of(said: Response) -> Any:
    """Read a body."""
    return json.loads(bytes(said.body))


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_every_failure_has_the_status_of_the_table(kind: ErrorKind) -> None:
    """And a body that names the request."""
    said = answer(request_error(kind, "what happened"), "id-1")

    assert said.status_code == TABLE[kind].infer_status
    assert body_of(said)["request_id"] == "id-1"
    assert b"what happened" in bytes(said.body) or kind is ErrorKind.CONFLICT  # which has words of HTTP's own


def test_a_key_used_twice_is_named_as_its_caller_knows_it() -> None:
    """Whoever asks over HTTP has sent an Idempotency-Key, and no request id of the wire."""
    error = request_error(ErrorKind.CONFLICT, "this request id was used before, with another body or model")
    own, openai = body_of(answer(error, "i")), body_of(answer(error, "i", "/v1/completions"))["error"]

    assert own["reason"] == openai["code"] == "idempotency_key_reused"
    assert own["detail"] == openai["message"]
    assert "Idempotency-Key" in own["detail"]
    assert "request id" not in own["detail"]


@pytest.mark.parametrize("kind", [kind for kind in ErrorKind if TABLE[kind].infer_status in (429, 503)])
def test_who_may_come_back_is_told_when_in_whole_seconds(kind: ErrorKind) -> None:
    """Rounded up: an earlier try would be refused again. Never 0, which means at once."""
    assert answer(request_error(kind, "", retry_after_s=2.1), "i").headers["retry-after"] == "3"
    assert answer(request_error(kind, ""), "i").headers["retry-after"] == "1"


@pytest.mark.parametrize("kind", [ErrorKind.DEADLINE, ErrorKind.MODEL_RAISED, ErrorKind.POISON, ErrorKind.CONFLICT])
def test_what_must_not_be_sent_again_says_so(kind: ErrorKind) -> None:
    """The OpenAI SDK would send it twice more."""
    assert answer(request_error(kind, ""), "i").headers["x-should-retry"] == "false"


def test_what_may_be_sent_again_does_not_say_no() -> None:
    """A full queue, for one."""
    assert "x-should-retry" not in answer(request_error(ErrorKind.QUEUE_FULL, ""), "i").headers


def test_a_prompt_that_does_not_fit_is_an_invalid_prompt() -> None:
    """Both numbers are in the sentence; the shape is that of any 422."""
    said = answer(request_error(ErrorKind.CONTEXT_EXCEEDED, "9000 tokens, the context is 8192"), "i")

    assert said.status_code == 422
    assert body_of(said) == {
        "detail": [
            {
                "loc": ["body", "prompt"],
                "msg": "9000 tokens, the context is 8192",
                "type": "context_length_exceeded",
            }
        ],
        "request_id": "i",
    }
