"""Hosts and origins as browsers name them, and the patterns that operators write for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.origins import (
    host_pattern,
    is_this_machine,
    matches_host,
    matches_origin,
    origin_pattern,
    read_host,
    read_origin,
)

PIECES = [
    *'aB0.-_:/@*[]%? \t"\0',
    *("example.org", "localhost", "127.0.0.1", "[::1]", "[fe80::1%25eth0]", "*.", "null"),
    *("://", "http", "https", "app", ":8000", ":80", ":443", ":0", ":*"),
    *("b\u00fccher", "xn--bcher-kva", "\u3002", "\u00df", "\ud800"),
]
WRITTEN = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20)


@given(WRITTEN)
def test_what_is_read_can_be_written_as_a_pattern_that_means_it(written: str) -> None:
    """So a refusal can name the value that would let its caller in; and nothing that a header holds is a fault here."""
    host, origin = read_host(written), read_origin(written)

    assert host is None or matches_host(host, host_pattern(str(host)))
    assert origin is None or matches_origin(origin, origin_pattern(str(origin)))


@given(WRITTEN)
def test_a_pattern_means_something_or_is_refused_in_words(written: str) -> None:
    """Whatever an operator writes."""
    for read in (host_pattern, origin_pattern):
        try:
            assert str(read(written))
        except ValueError as error:
            assert not isinstance(error, UnicodeError)
            assert str(error)


@pytest.mark.parametrize(
    "name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "1.2.3.example", "evil", "0x7f.evil"]
)
def test_a_name_that_somebody_could_own_is_not_this_machine(name: str) -> None:
    """Nor what only looks like an address or like localhost."""
    for spelled in (name, name.upper(), f"{name}.", f"{name}:8000"):
        host = read_host(spelled)
        assert host is not None
        assert not is_this_machine(host.name)
