"""Where a request stands that waits at a broker."""

from __future__ import annotations

import pytest

from zmqrt.client.queue_place import QueuePlace, place_in


@pytest.mark.parametrize(
    ("ext", "place"),
    [
        ({"before": 3, "wait_ms": 1500}, QueuePlace(3, 1.5)),
        ({"units": 4}, None),
        ({"before": True, "wait_ms": 1}, None),
        ({"before": -1, "wait_ms": 1}, None),
        ({"before": 1, "wait_ms": "soon"}, None),
    ],
)
def test_what_a_broker_tells_is_read_or_left(ext: dict[str, str | int | bool | None], place: QueuePlace | None) -> None:
    """What cannot be meant is nothing."""
    assert place_in(ext) == place


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (QueuePlace(0, 0.2), "0 before this one, about a moment"),
        (QueuePlace(7, 42.4), "7 before this one, about 42 s"),
        (QueuePlace(90, 290.0), "90 before this one, about 5 min"),
    ],
)
def test_a_place_in_words(place: QueuePlace, words: str) -> None:
    """No more exact than it is known."""
    assert str(place) == words
