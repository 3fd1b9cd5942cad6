"""Whom a request is from, behind proxies: only what cannot be made up counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.forwarded import Forwarded, TrustedProxies, read_networks

PEER = "10.0.0.5"
PROXIES = TrustedProxies(read_networks(["10.0.0.0/24", "fd00::/8"]))


def asked_by(**fields: str) -> Forwarded:
    """Ask through the nearest proxy with some fields."""
    return PROXIES.asked_by(PEER, [(name.replace("_", "-").encode(), text.encode()) for name, text in fields.items()])


@pytest.mark.parametrize(
    ("listed", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7", "203.0.113.7"),  # the first one was sent by who asks
        ("203.0.113.7, 10.0.0.9", "203.0.113.7"),  # through two proxies of ours
        ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711, fd00::1", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, unknown", PEER),
        ("203.0.113.7, unknown, 10.0.0.9", "10.0.0.9"),
        ("10.0.0.8, 10.0.0.9", "10.0.0.8"),
        ("fe80::1%\x1b[2J", "fe80::1"),
        ("", PEER),
    ],
)
def test_the_list_is_read_from_its_end(listed: str, address: str) -> None:
    """Past the proxies that are trusted, to the first address that is not."""
    assert asked_by(x_forwarded_for=listed).address == address


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("for=203.0.113.7;proto=https", Forwarded("203.0.113.7", "https")),
        ('for="[2001:db8::1]:4711";by=10.0.0.5', Forwarded("2001:db8::1")),
        ("for=6.6.6.6, For=203.0.113.7; PROTO=HTTPS", Forwarded("203.0.113.7", "https")),
        ("for=203.0.113.7, for=10.0.0.9;proto=http", Forwarded("203.0.113.7", "http")),
        ("for=_hidden", Forwarded(PEER)),
        ('for="203.0.113.7', Forwarded(PEER)),
        ("nonsense", Forwarded(PEER)),
    ],
)
def test_the_notation_of_rfc_7239_is_read(value: str, said: Forwarded) -> None:
    """Names in any case, quoted or not; what cannot be read says nothing."""
    assert asked_by(forwarded=value) == said


def test_two_notations_that_differ_count_for_nothing() -> None:
    """A proxy writes one, and passes on the other as its caller made it up."""
    assert asked_by(x_forwarded_for="203.0.113.7", forwarded="for=6.6.6.6").address == PEER
    assert asked_by(x_forwarded_for="203.0.113.7", forwarded="for=203.0.113.7;proto=https") == ("203.0.113.7", "https")
    assert asked_by(x_forwarded_proto="https", forwarded="proto=http").scheme == ""
    assert asked_by(x_forwarded_proto="https").scheme == "https"
    assert asked_by(x_forwarded_proto="gopher").scheme == ""


def test_only_those_that_were_named_are_proxies() -> None:
    """Also where a socket of both families writes an address of the older one."""
    assert PROXIES.include(PEER)
    assert PROXIES.include("::ffff:10.0.0.5")
    assert PROXIES.include("fd00::1%eth0")
    assert not PROXIES.include("10.0.1.5")
    assert not TrustedProxies(()).include(PEER)


def test_what_is_no_address_is_refused() -> None:
    """A name would have to be looked up again and again."""
    with pytest.raises(ValueError, match="name the addresses of proxies"):
        BridgeSettings(trusted_proxy=("nginx",))


@given(st.lists(st.tuples(st.sampled_from([b"forwarded", b"x-forwarded-for", b"x-forwarded-proto"]), st.binary())))
def test_whatever_stands_there_is_an_address_or_nothing(fields: list[tuple[bytes, bytes]]) -> None:
    """It goes into logs."""
    said = PROXIES.asked_by(PEER, fields)

    assert read_networks([said.address])
    assert said.scheme in {"", "http", "https"}
