"""Lines to join by: read back as written; cut, changed and foreign ones are told apart, and none repeats its secret."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.join_line import JoinLine, read_line, refuse_expired, write_line
from zmqrt.protocol.keys import new_pair

SERVER, OWN = new_pair(), new_pair()
BROKERS = ("tcp://10.0.0.5:7556", "tcp://[fd00::1]:7556")


def made(expires: float | None = None, name: str = "gpu-7") -> str:
    """Make a line."""
    return write_line("worker", BROKERS, SERVER.public, OWN.secret, name, expires)


def test_a_line_is_one_word_and_holds_all_that_a_session_needs() -> None:
    """Address, the broker's key, a pair of its own, who it is and until when."""
    text = made(1e10)
    line = read_line(text)

    assert text.split() == [text]
    assert (line.role, line.brokers, line.name, line.expires) == ("worker", BROKERS, "gpu-7", 10**10)
    assert line.peer_keys().own == OWN
    assert line.peer_keys().server_public == SERVER.public
    assert repr(line.secret) not in repr(line)


def test_a_line_that_a_terminal_has_broken_is_read() -> None:
    """Spaces and line ends are no part of it."""
    text = made()
    assert read_line(f"  {text[:40]}\n{text[40:]} \r\n") == read_line(text)


def test_each_cut_is_called_a_cut() -> None:
    """Wherever it is, so that nobody asks for another line instead of copying again."""
    text = made()
    for end in range(len("zmqrt-join"), len(text)):
        with pytest.raises(ConfigurationError, match=r"cut off|copy it again"):
            read_line(text[:end])
    assert "cut off" in refusal(text[:-9])


def refusal(text: str) -> str:
    """Read what is no line, and return why not."""
    with pytest.raises(ConfigurationError) as caught:
        read_line(text)
    return str(caught.value)


def test_a_changed_line_and_one_of_another_kind_are_told_apart() -> None:
    """A letter that was changed, another version, an API key, nothing."""
    text = made()
    other = "A" if text[60] != "A" else "B"

    assert "checksum" in refusal(text[:60] + other + text[61:])
    assert "another version" in refusal(text.replace("join1.", "join2."))
    assert "would begin with zmqrt-join1." in refusal("zmqrt-0123")
    assert "would begin with" in refusal("")
    assert "letters" in refusal(text[:30] + "é" + text[31:])


def test_an_expired_line_is_refused_before_anything_connects() -> None:
    """With the time, and where a new one comes from."""
    refuse_expired(read_line(made(time.time() + 60)))
    refuse_expired(read_line(made()))

    with pytest.raises(ConfigurationError, match=r"gpu-7 expired at 1970-01-01T00:00:05Z; ask for a new one"):
        refuse_expired(read_line(made(5)))


@pytest.mark.parametrize("name", ["two words", "", "n" * 200, "a\nb"])
def test_a_name_that_no_list_could_hold_is_refused(name: str) -> None:
    """When the line is made."""
    with pytest.raises(ConfigurationError):
        made(name=name)


@given(st.text(max_size=300))
def test_no_text_ends_the_reader(text: str) -> None:
    """It is a line, or a ConfigurationError."""
    for given_text in (text, "zmqrt-join1." + text):
        with contextlib.suppress(ConfigurationError):
            assert isinstance(read_line(given_text), JoinLine)


@given(st.integers(0, len(made()) - 1), st.characters())
def test_no_line_with_another_letter_is_read_as_another_fleet(at: int, letter: str) -> None:
    """It is the same line, or refused."""
    text = made()
    with contextlib.suppress(ConfigurationError):
        assert read_line(text[:at] + letter + text[at + 1 :]) == read_line(text)
