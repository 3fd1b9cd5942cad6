"""When an engine process is started again, and what is said of its end."""

from zmqrt.protocol.timing import RestartPolicy
from zmqrt.worker.engine_child import describe_end
from zmqrt.worker.supervisor import restart_policy


def ends(policy: RestartPolicy, count: int, now: float = 100.0) -> list[float | None]:
    """Let processes load and end at once; return the pauses."""
    pauses: list[float | None] = []
    for _ in range(count):
        policy.ready(now)
        start_at = policy.ended(now)
        pauses.append(None if start_at is None else start_at - now)
    return pauses


def test_pauses_double_up_to_half_a_minute() -> None:
    """Half a second at first, never more than the most."""
    assert ends(restart_policy(), 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert ends(restart_policy(), 100)[-1] == 30


def test_a_process_that_served_a_minute_begins_a_new_series() -> None:
    """Its end is no worse than the first one."""
    policy = restart_policy()
    ends(policy, 5)
    policy.ready(200.0)

    assert policy.ended(200.0 + 60.0) == 200.5 + 60.0


def test_a_process_that_served_less_does_not() -> None:
    """A crash loop stays one, however the processes spread their ends."""
    policy = restart_policy()
    ends(policy, 2)
    policy.ready(200.0)

    assert policy.ended(200.0 + 60.0 - 1) == 200.0 + 60.0 - 1 + 2.0


def test_time_spent_loading_is_no_health() -> None:
    """Only serving counts."""
    policy = restart_policy()

    assert [policy.ended(now) for now in (100.0, 1000.0)] == [100.5, 1001.0]


def test_what_never_loads_is_given_up() -> None:
    """Three tries: then the words of the last error are for a person."""
    policy = restart_policy()

    assert [policy.ended(0.0) for _ in range(3)] == [0.5, 1.0, None]


def test_what_has_loaded_once_is_never_given_up() -> None:
    """The model is fine; whatever keeps it from loading now may pass."""
    policy = restart_policy()
    policy.ready(0.0)

    assert None not in [policy.ended(0.0) for _ in range(50)]


def test_an_end_is_described_by_its_last_words_its_signal_or_its_code() -> None:
    """In this order: the most that is known."""
    assert describe_end(1, "OSError: no weights") == "OSError: no weights"
    assert describe_end(-9, "") == "killed by SIGKILL"
    assert "for want of memory" in describe_end(-9, "", was_ready=False)
    assert describe_end(-99, "") == "killed by signal 99"
    assert describe_end(3, "") == "exit code 3, see its log"
