"""How many connections there may be, and who makes room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zmqrt.bridge_http.connection_limits import Clock, ConnectionLimit, most_connections


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


class Loop:
    """Keeps timers, and rings them when it is told how late it is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        """Tell how late it is."""
        return self.now

    def call_at(self, when: float, call: Callable[[], object]) -> Loop:
        """Keep a timer, of which there is one at a time."""
        self.timers.append((when, call))
        return self

    def cancel(self) -> None:
        """Forget it."""
        self.timers.clear()

    def go_on_to(self, now: float) -> None:
        """Ring what is due until then."""
        while self.timers and self.timers[0][0] <= now:
            self.now, call = self.timers.pop(0)
            call()
        self.now = now


def test_a_clock_calls_once_when_its_last_wait_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps one timer however often it is started, but for a wait that ends before that one rings."""
    loop, calls = Loop(), list[str]()
    monkeypatch.setattr("asyncio.get_running_loop", lambda: loop)
    clock = Clock()
    for at in range(10):
        loop.go_on_to(float(at))
        clock.start(120.0, lambda: calls.append("long"))
        assert [when for when, _ in loop.timers] == [120.0]
        clock.stop()
    loop.go_on_to(10.0)
    clock.start(120.0, lambda: calls.append("long"))
    loop.go_on_to(129.0)
    assert (calls, [when for when, _ in loop.timers]) == ([], [130.0])
    clock.start(0.5, lambda: calls.append("short"))
    loop.go_on_to(200.0)

    assert (calls, loop.timers) == (["short"], [])


def test_a_clock_that_stands_still_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves no timer behind once its connection is gone."""
    loop, calls = Loop(), list[str]()
    monkeypatch.setattr("asyncio.get_running_loop", lambda: loop)
    clock = Clock()
    clock.start(1.0, lambda: calls.append("called"))
    clock.stop()
    loop.go_on_to(5.0)
    clock.start(1.0, lambda: calls.append("called"))
    clock.end()

    assert (calls, loop.timers) == ([], [])
