"""How many connections there may be, and who makes room."""

import pytest

from zmqrt.bridge_http.connection_limits import ConnectionLimit, most_connections


class Seat:
    """A connection that notes whether it had to go."""

    def __init__(self) -> None:
        self.is_gone = False

    def make_room(self) -> None:
        """Go."""
        self.is_gone = True


def test_who_has_idled_longest_makes_room_for_a_newcomer() -> None:
    """Not who has a request under way."""
    limit = ConnectionLimit(3)
    busy, older, newer = Seat(), Seat(), Seat()
    for one in (busy, older, newer):
        assert limit.admit(one)
        limit.mark_idle(one)
    limit.mark_busy(busy)

    assert limit.admit(Seat())
    assert [one.is_gone for one in (busy, older, newer)] == [False, True, False]


def test_among_the_busy_there_is_no_room_until_one_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once and not for each: who asks for attention must not fill the log."""
    limit = ConnectionLimit(2)
    first = Seat()
    assert limit.admit(first)
    assert limit.admit(Seat())

    assert not any(limit.admit(Seat()) for _ in range(100))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "--max-connections" in caplog.text
    limit.remove(first)
    assert limit.admit(Seat())


def test_the_limit_of_open_files_is_the_last_word(caplog: pytest.LogCaptureFixture) -> None:
    """More than that would be refused by the system, in silence."""
    most = most_connections(0)

    assert 16 <= most <= 16_384
    assert most_connections(most + 1) == most
    assert "ulimit -n" in caplog.text
    assert most_connections(3) == 3
