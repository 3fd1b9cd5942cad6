"""The channel between agent and engine: messages cut anywhere, a reader that stands still, an end."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.worker.engines.channel import Channel, WakePipe

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="nodes are Unix only")]


@given(messages=st.lists(st.binary(max_size=300)), cuts=st.lists(st.integers(1, 40)))
def test_messages_arrive_whole_wherever_the_stream_is_cut(messages: list[bytes], cuts: list[int]) -> None:
    """In their order, each once; what is not whole yet waits."""
    ours, its = socket.socketpair()
    sender, reader = socket.socketpair()
    whole, channel = Channel(ours), Channel(reader)
    for message in messages:
        whole.send(message)
    whole.close()
    stream = b"".join(iter(lambda: its.recv(1 << 16), b""))
    got: list[bytes] = []
    for size in cuts:
        sender.sendall(stream[:size])
        stream = stream[size:]
        got += channel.receive()
    sender.sendall(stream)
    got += channel.receive()
    assert got == messages
    for end in (its, sender):
        end.close()
    channel.close()


def test_a_reader_that_stands_still_holds_up_nobody_and_loses_nothing() -> None:
    """What there is no room for waits, and goes on when it reads again."""
    ends = socket.socketpair()
    sender, reader = map(Channel, ends)
    messages = [bytes([number]) * 100_000 for number in range(100)]
    for message in messages:
        sender.send(message)
    assert sender.has_unsent

    got: list[bytes] = []
    while len(got) < len(messages):
        got += reader.receive()
        sender.flush()
    assert got == messages
    assert not sender.has_unsent
    sender.close()
    reader.close()


def test_last_words_are_read_after_the_end() -> None:
    """Even those that waited for room: closing sends them."""
    ends = socket.socketpair()
    sender, reader = map(Channel, ends)
    words = [b"w" * 1_000_000, b"the reason"]
    for word in words:
        sender.send(word)
    assert sender.has_unsent
    leaving = threading.Thread(target=sender.close, args=(30.0,))
    leaving.start()
    got: list[bytes] = []
    while not reader.is_over:
        select.select([reader], [], [], 30)
        got += reader.receive()
    leaving.join()
    assert got == words
    reader.send(b"to nobody")
    assert not reader.has_unsent
    reader.close()


def test_a_wake_pipe_wakes_once_for_many_calls() -> None:
    """And never blocks who wakes."""
    pipe = WakePipe()
    for _ in range(100_000):
        pipe.wake()
    pipe.drain()
    with pytest.raises(BlockingIOError):
        os.read(pipe.fileno(), 1)
