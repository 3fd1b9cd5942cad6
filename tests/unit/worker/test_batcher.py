"""The batcher: bounds are never exceeded, nothing is lost or starved, and an idle device never waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmqrt.worker.engines.base import Item
from zmqrt.worker.engines.batcher import PAD_TO, Batcher, within_a_quarter


def item(ticket: int, length: int = 10) -> Item:
    """Build an item."""
    return Item(ticket=ticket, task={}, length=length)


def tickets(batch: list[Item] | None) -> list[int]:
    """Name a batch."""
    return [one.ticket for one in batch or []]


def settled(batcher: Batcher, now: float = 0.0) -> list[int]:
    """Ask twice, as a loop does when nothing more arrives."""
    return tickets(batcher.next_batch(now, idle=True) or batcher.next_batch(now, idle=True))


def test_a_lone_item_waits_one_pass_and_no_time() -> None:
    """One look whether more is coming, then it goes."""
    batcher = Batcher(max_size=8, max_latency_s=2.0)
    batcher.add(item(1), now=0.0)

    assert batcher.next_batch(0.0, idle=True) is None
    assert tickets(batcher.next_batch(0.0, idle=True)) == [1]


def test_a_full_batch_goes_at_once() -> None:
    """No second look."""
    batcher = Batcher(max_size=2, max_latency_s=2.0)
    for ticket in (1, 2, 3):
        batcher.add(item(ticket), now=0.0)

    assert tickets(batcher.next_batch(0.0, idle=True)) == [1, 2]


def test_a_busy_device_gets_nothing() -> None:
    """The batch fills meanwhile."""
    batcher = Batcher(max_size=8, max_latency_s=0.0)
    batcher.add(item(1), now=0.0)

    assert batcher.next_batch(9.0, idle=False) is None
    assert len(batcher) == 1


def test_sixty_four_need_nine_batches_when_the_first_goes_alone() -> None:
    """The first finds the device idle; the others fill batches of eight while it runs."""
    batcher = Batcher(max_size=8, max_latency_s=0.05)
    batcher.add(item(0), now=0.0)
    assert settled(batcher) == [0]
    for ticket in range(1, 64):
        batcher.add(item(ticket), now=0.0)

    sizes: list[int] = []
    while len(batcher):
        sizes.append(len(settled(batcher)))

    assert sizes == [8] * 7 + [7]


def test_lengths_do_not_mix_and_none_starves() -> None:
    """The fullest group goes first, until another has waited for the bound."""
    batcher = Batcher(max_size=4, max_latency_s=1.0)
    batcher.add(item(1, 1000), now=0.0)
    for ticket in (2, 3):
        batcher.add(item(ticket, 10), now=0.5)

    assert settled(batcher, 0.5) == [2, 3]
    for ticket in (4, 5, 6, 7):
        batcher.add(item(ticket, 10), now=0.9)
    assert settled(batcher, 1.0) == [1]


def test_only_the_bad_item_of_a_failed_batch_is_given_up() -> None:
    """Halves are tried again until it is alone."""
    batcher = Batcher(max_size=8, max_latency_s=1.0)
    for ticket in range(8):
        batcher.add(item(ticket), now=0.0)
    lost: list[int] = []
    done: list[int] = []
    while len(batcher):
        batch = batcher.next_batch(0.0, idle=True) or []
        if 5 in tickets(batch):
            lost += tickets(batcher.failed(batch))
        else:
            done += tickets(batch)

    assert lost == [5]
    assert sorted(done) == [0, 1, 2, 3, 4, 6, 7]


def test_a_waiting_item_can_be_cancelled_once() -> None:
    """Also when it waits for its second try."""
    batcher = Batcher(max_size=2, max_latency_s=1.0)
    batcher.add(item(1), now=0.0)
    batcher.add(item(2), now=0.0)

    assert batcher.cancel(1)
    assert not batcher.cancel(1)
    batcher.failed([item(3), item(4)])
    assert batcher.cancel(3)
    assert [settled(batcher), settled(batcher)] == [[4], [2]]


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 5)), max_size=60), st.integers(1, 9))
def test_everything_goes_exactly_once_within_the_bound(arrivals: list[tuple[int, float]], max_size: int) -> None:
    """Whatever arrives leaves once, in batches of one length."""
    batcher = Batcher(max_size=max_size, max_latency_s=1.0)
    for ticket, (length, now) in enumerate(arrivals):
        batcher.add(item(ticket, length), now)
    gone: list[int] = []
    while len(batcher):
        batch = batcher.next_batch(6.0, idle=True) or []
        assert len(batch) <= max_size
        assert len({-(-one.length // PAD_TO) for one in batch}) <= 1
        gone += tickets(batch)

    assert sorted(gone) == list(range(len(arrivals)))


def test_tokens_bound_a_batch_as_its_size_does() -> None:
    """Padding counts; what is longer than the bound goes alone."""
    batcher = Batcher(max_size=8, max_latency_s=1.0, max_tokens=256)
    for ticket, length in enumerate([60, 64, 50, 60, 64, 900]):
        batcher.add(item(ticket, length), now=0.0)

    assert [settled(batcher) for _ in range(3)] == [[0, 1, 2, 3], [5], [4]]


def test_whose_turn_it_is_goes_first() -> None:
    """Before those who came earlier with later turns; of equal ones who came first."""
    batcher = Batcher(max_size=2, max_latency_s=1.0)
    for ticket in range(6):
        batcher.add(item(ticket), now=0.0, turn=ticket)
    assert settled(batcher) == [0, 1]

    batcher.add(item(9), now=0.0, turn=2)

    assert settled(batcher) == [2, 9]


@given(st.integers(1, 20_000))
def test_groups_of_texts_are_a_quarter_wide(length: int) -> None:
    """Or 16 tokens: so much of a batch may be padding."""
    padded = within_a_quarter(length)

    assert length <= padded <= max(length * 1.25, length + 15)
    assert within_a_quarter(padded) == padded
