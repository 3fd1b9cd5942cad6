"""The units delivered so far: whole for a new worker, in parts for a subscriber that lags."""

from __future__ import annotations

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.broker.journal import Journal, split_blob

CHUNKS = st.lists(st.tuples(st.integers(1, 5), st.binary(max_size=300)), max_size=40)


def filled(chunks: list[tuple[int, bytes]]) -> Journal:
    """Make a journal of chunks."""
    journal = Journal()
    for n, body in chunks:
        journal.append(journal.next_n, n, body)
    return journal


@given(CHUNKS)
def test_the_blob_is_an_array_of_all_bodies(chunks: list[tuple[int, bytes]]) -> None:
    """As any MessagePack subscriber sees it."""
    journal = filled(chunks)

    assert msgpack.unpackb(journal.blob()) == [body for _, body in chunks]
    assert journal.next_n == sum(n for n, _ in chunks)


@given(CHUNKS, st.data())
def test_every_unit_is_found_in_its_chunk(chunks: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """And a trimmed one no more."""
    journal = filled(chunks)
    trimmed = data.draw(st.integers(0, len(chunks)))
    if trimmed:
        journal.trim(trimmed)

    seq = 0
    for number, (n, body) in enumerate(chunks):
        for unit in range(seq, seq + n):
            assert journal.chunk_at(unit) == (number if number >= trimmed else None)
        if number >= trimmed:
            assert journal.chunk(number) == (seq, n, body)
        seq += n
    assert journal.chunk_at(seq) == journal.end == len(chunks)
    assert journal.chunk_at(seq + 1) is None
    assert journal.is_whole == (not trimmed)
    assert journal.size_bytes == journal.bytes_from(trimmed)


def test_bodies_of_every_size_are_encoded_as_messagepack_wants_them() -> None:
    """One, two and four bytes of length."""
    bodies = [b"", b"x" * 255, b"x" * 256, b"x" * 65_535, b"x" * 65_536]
    journal = filled([(1, body) for body in bodies])

    assert msgpack.unpackb(journal.blob()) == bodies
    assert [journal.chunk(number)[2] for number in range(5)] == bodies


def test_a_prefix_of_the_client_stands_before_the_chunks() -> None:
    """It has no chunk of its own: only a worker needs it."""
    split = split_blob(msgpack.packb([b"a", b"b"]))
    assert split is not None
    count, elements = split
    journal = Journal(elements, count, 7)
    journal.append(7, 1, b"c")

    assert msgpack.unpackb(journal.blob()) == [b"a", b"b", b"c"]
    assert (journal.chunk_at(6), journal.chunk_at(7), journal.chunk(0)) == (None, 0, (7, 1, b"c"))


@given(st.integers(0, 70_000))
def test_array_heads_are_read_and_written_alike(count: int) -> None:
    """Of every length."""
    elements = b"\xc4\x00" * count

    split = split_blob(Journal(elements, count).blob())

    assert split == (count, elements)


@given(st.binary(max_size=8))
def test_what_is_no_array_is_no_blob(data: bytes) -> None:
    """Any bytes: an array head, or None."""
    split = split_blob(data)

    assert split is None or data[0] in (*range(0x90, 0xA0), 0xDC, 0xDD)
