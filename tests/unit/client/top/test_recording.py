"""Recordings: what was seen can be seen again, from any point of it."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from support.fake_fleet import node
from support.top import event, snapshot
from zmqrt.client.top.fleet import Sight
from zmqrt.client.top.recording import Recorder, Recording
from zmqrt.protocol.errors import ZmqrtError


def looks(count: int, seed: int) -> list[list[Sight]]:
    """Make a history of two brokers, one of which goes and comes back as another process."""
    chance = random.Random(seed)
    made: list[list[Sight]] = []
    for number in range(count):
        nodes = [node(name, elapsed_s=number, tokens=number * 10) for name in "abc" if chance.random() < 0.8]
        one = msgspec.structs.replace(
            snapshot(*nodes),
            serial=number + 1,
            uptime_s=float(number),
            counters={"completed": number},
            events=[event(one) for one in range(number + 1)],
        )
        nodes = [msgspec.structs.replace(each, heartbeat_age_s=number - each.heard_at_s) for each in one.nodes]
        one = msgspec.structs.replace(one, nodes=nodes)
        other = msgspec.structs.replace(one, broker_id="o", broker_epoch=1 + number // 7, nodes=[])
        there = chance.random() < 0.7
        made.append(
            [
                Sight(endpoint="tcp://x:1", snapshot=one),
                Sight(endpoint="tcp://y:1", snapshot=other if there else None, problem="" if there else "gone"),
            ]
        )
    return made


def record(path: Path, seen: list[list[Sight]]) -> None:
    """Write a recording, one look a second."""
    with Recorder(path) as recorder:
        for number, sights in enumerate(seen):
            recorder.write(sights, 1000.0 + number)


@pytest.mark.parametrize("seed", range(5))
def test_any_point_can_be_seen_again(tmp_path: Path, seed: int) -> None:
    """In order, and after jumps back and ahead."""
    print("seed", seed)
    path, seen = tmp_path / "day.rec", looks(150, seed)
    record(path, seen)
    with closing(Recording(path)) as recording:
        assert len(recording) == 150
        assert [recording.sights(index) for index in range(150)] == seen
        for index in random.Random(seed).choices(range(150), k=40):
            assert recording.sights(index) == seen[index]
            assert recording.time_of(index) == 1000.0 + index


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """A day of a quiet fleet is no burden."""
    path = tmp_path / "day.rec"
    one = msgspec.structs.replace(snapshot(*[node(f"n{number}") for number in range(20)]), serial=1)
    record(path, [[Sight(endpoint="x", snapshot=one)]] * 50)
    head, whole, *rest = path.read_bytes().splitlines()

    assert json.loads(head)["format"] == "zmqrt top"
    assert max(map(len, rest)) < len(whole) / 10


def test_a_recording_that_was_cut_off_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    """The process may have been killed in the middle of a line."""
    path = tmp_path / "day.rec"
    record(path, looks(5, 1))
    path.write_bytes(path.read_bytes()[:-30])

    with closing(Recording(path)) as recording:
        assert len(recording) == 5
        assert len(recording.sights(4)) == 1


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\x00\xff\n", b'{"format":"zmqrt top","version":9}\n', b"[1]\n"])
def test_what_is_no_recording_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    """Whatever it is."""
    path = tmp_path / "other.txt"
    path.write_bytes(content)

    with pytest.raises(ZmqrtError, match=r"recording|recorded"):
        Recording(path)


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A recording is a file that anybody may have edited."""
    path = tmp_path / "day.rec"
    record(path, looks(2, 1))
    path.write_bytes(path.read_bytes() + b"nonsense\n")

    with pytest.raises(ZmqrtError, match="cannot be read"):
        Recording(path)


def test_what_another_release_wrote_is_a_gap_and_no_end(tmp_path: Path) -> None:
    """A broker of which a part cannot be read says so, and is there again at the next whole state."""
    path = tmp_path / "day.rec"
    one = msgspec.structs.replace(snapshot(node("a")), serial=1)
    record(path, [[Sight(endpoint="x", snapshot=one)]] * 70)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"since":1', b'"since":9')
    path.write_bytes(b"".join(lines))
    with closing(Recording(path)) as recording:
        (gap,) = recording.sights(1)
        (whole,) = recording.sights(65)

    assert gap.snapshot is None
    assert "cannot be read" in gap.problem
    assert whole.snapshot is not None


def test_no_recording_is_overwritten(tmp_path: Path) -> None:
    """It may be the only one of that day."""
    path = tmp_path / "day.rec"
    record(path, looks(2, 1))

    with pytest.raises(ZmqrtError, match="exists already"):
        Recorder(path)


def test_a_clock_that_is_set_back_does_not_disorder_a_recording(tmp_path: Path) -> None:
    """Looks are found by their time."""
    path = tmp_path / "day.rec"
    with Recorder(path) as recorder:
        for at in (100.0, 101.0, 50.0, 102.0):
            recorder.write([Sight(endpoint="x", problem=str(at))], at)
    with closing(Recording(path)) as recording:
        times = [recording.time_of(index) for index in range(len(recording))]

    assert times == sorted(times)
