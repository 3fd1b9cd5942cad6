"""Server-sent events as bytes."""

import json

import pytest

from zmqrt.bridge_http import sse
from zmqrt.bridge_http.json_body import event


def test_an_event_is_four_lines() -> None:
    """Its data is one line of JSON, whatever is in it."""
    assert event("token", {"text": "a\nb é"}, id_="r/3") == (
        'id: r/3\nevent: token\ndata: {"text":"a\\nb é"}\n\n'.encode()
    )


def test_an_id_may_be_absent() -> None:
    """An error has no place to go on from."""
    assert event("error", {}) == b"event: error\ndata: {}\n\n"


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r", "\n"])
def test_no_reader_finds_the_end_of_a_line_within_an_event(end: str) -> None:
    """Not even one that knows more ends of lines than the specification has."""
    told = event("token", {"text": f"a{end}b"}).decode()

    assert len(told.splitlines()) == 3
    assert json.loads(told.splitlines()[1].removeprefix("data: ")) == {"text": f"a{end}b"}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/json, text/event-stream;q=0.5", True),
        ("text/event-stream;q=0", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_a_stream_is_for_those_who_ask_for_it(accept: str, *, expected: bool) -> None:
    """`*/*` is what curl sends to everyone."""
    assert sse.wants_stream(accept) is expected
