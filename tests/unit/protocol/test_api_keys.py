"""Entries of API keys: what is read of one, and what is refused by name."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.api_keys import HASH, NO_LIMITS, ApiKey, Limits, digest_of, read_count, read_moment, read_ring

SECRET = b"a key"
HEX = digest_of(SECRET).hex()


def only(*entries: str) -> ApiKey:
    """Return the one key that entries mean."""
    (key,) = set(read_ring(entries).values())
    return key


def test_a_hash_is_the_key_that_it_is_of() -> None:
    """In any case of its letters, and with nothing behind it."""
    for written in (HEX, HEX.upper()):
        key = only(f"acme:{HASH}{written}")
        assert (key.tenant, key.digest, key.name) == ("acme", digest_of(SECRET), HEX[:8])
        assert (key.models, key.priority, key.limits, key.expires, key.why_not(0)) == (
            (),
            "default",
            NO_LIMITS,
            None,
            "",
        )


def test_words_say_what_goes_for_a_key() -> None:
    """All of them, in any order."""
    words = "tpm=100k name=ci budget=5M concurrency=4 rpm=60 models=a,b* priority=interactive expires=2027-01-31"
    key = only(f"acme:{HASH}{HEX} {words}")

    assert key.limits == Limits(60, 100_000, 4, 5_000_000)
    assert (key.name, key.priority) == ("ci", "interactive")
    assert [key.may_ask(model) for model in ("a", "aa", "bee")] == [True, False, True]
    assert key.expires is not None
    assert key.why_not(key.expires - 1) == ""
    assert "expired at 2027-01-31T00:00:00Z" in key.why_not(key.expires)


def test_a_tenant_has_limits_of_its_own() -> None:
    """Wherever its line stands."""
    for entries in ((f"acme:{HASH}{HEX}", "acme:* budget=1G"), ("acme:* budget=1G", f"acme:{HASH}{HEX}")):
        assert only(*entries).tenant_limits == Limits(budget=10**9)


def test_a_plain_key_that_looks_like_words_is_a_key() -> None:
    """Words stand behind hashes alone: what was a key before stays one."""
    key = only("acme:secret rpm=60")
    assert (key.digest, key.limits) == (digest_of(b"secret rpm=60"), NO_LIMITS)
    assert only("acme:**").digest == digest_of(b"**")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (f"acme:{HASH}12", "64 hexadecimal digits"),
        (f"acme:{HASH}{HEX} rps=5", "a name of name, models, .* not 'rps'"),
        (f"acme:{HASH}{HEX} rpm", "not 'rpm'"),
        (f"acme:{HASH}{HEX} rpm=1 rpm=2", "rpm stands there twice"),
        (f"acme:{HASH}{HEX} rpm=-1", "a whole number from 1"),
        (f"acme:{HASH}{HEX} priority=vip", "interactive, default, bulk"),
        (f"acme:{HASH}{HEX} expires=never", "a day or a time"),
        (f"acme:{HASH}{HEX} name=a/b", "a name of at most 64"),
        ("acme:* models=a", "a name of rpm"),
        ("acme:*", "it is no key"),
        ("acme: '*'", "it is no key"),
    ],
)
def test_mistakes_are_named(entry: str, why: str) -> None:
    """Without the hash."""
    with pytest.raises(ValueError, match=why) as caught:
        read_ring([entry])

    assert HEX not in str(caught.value)


def test_one_key_cannot_have_two_meanings() -> None:
    """Nor two tenants, hashed or not."""
    with pytest.raises(ValueError, match="is given twice"):
        read_ring([f"acme:{HASH}{HEX}", f"acme:{HASH}{HEX} rpm=5"])
    with pytest.raises(ValueError, match="given twice, to 'acme' and to 'other'"):
        read_ring(["acme:a key", f"other:{HASH}{HEX}"])


def test_numbers_and_times() -> None:
    """As people write them; times without a zone are UTC."""
    assert [read_count(text) for text in ("7", "2k", "3M", "1G")] == [7, 2000, 3_000_000, 10**9]
    assert read_moment("1970-01-02") == 86400
    assert read_moment("1970-01-01T02:00+01:00") == 3600


@given(st.lists(st.text(max_size=80), max_size=5))
def test_whatever_stands_in_a_file_is_a_key_or_a_mistake(lines: list[str]) -> None:
    """Never another exception, and no key in an error."""
    with contextlib.suppress(ValueError):
        assert all(key.tenant for key in read_ring(lines).values())


@given(st.text(alphabet="=, *abrpmk0159$:-", max_size=40))
def test_whatever_stands_behind_a_hash_is_read_or_named(words: str) -> None:
    """A line that is read says what it says: no word is passed over."""
    try:
        key = only(f"acme:{HASH}{HEX} {words}")
    except ValueError as error:
        assert HEX not in str(error)
        return
    assert key.digest == digest_of(SECRET)
    assert bool(words.split()) == (key != only(f"acme:{HASH}{HEX}") or "name=" in words or "priority=default" in words)


def test_limits_of_a_tenant_stand_on_one_line() -> None:
    """Of two the first would be lost unseen."""
    with pytest.raises(ValueError, match="one line"):
        read_ring(["acme:* rpm=5", "acme:* budget=1M", "acme:k"])


def test_what_is_revoked_anywhere_is_revoked() -> None:
    """A key may stand in API_KEYS, and in the file where somebody revokes it."""
    revoked = f"acme:{HASH}{HEX} revoked=2026-11-30T00:00:00Z"
    plain = f"acme:{SECRET.decode()}"
    for entries in ((plain, revoked), (revoked, plain), (revoked, f"acme:{HASH}{HEX} rpm=1")):
        assert only(*entries).why_not(0)


def test_a_tenant_of_another_encoding_can_be_written_down() -> None:
    """Its requests failed: its name goes into hashes, files and metrics."""
    assert only("caf\udce9:k").tenant == "caf\xe9"
    assert only("caf\udcc3\udca9:k").tenant == "caf\xe9"
