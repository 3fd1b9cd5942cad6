"""Keys of HTTP callers: what is written once at the start matches what clients send, or is refused then."""

import logging
from pathlib import Path

import pytest

from support.asgi import infer
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.errors import ConfigurationError

ASK = {"prompt": "Hi"}


def status(settings: BridgeSettings, key: str | bytes, *, header: str = "authorization") -> int:
    """Send a key, in the bytes that it is given in, and return the status."""
    sent = key if isinstance(key, bytes) else key.encode()
    value = (b"Bearer " + sent if header == "authorization" else sent).decode("latin-1")
    return infer(make_app(FakeFleet("ok"), settings), ASK, **{header: value}).status


@pytest.mark.parametrize("key", ["s\u00e9cret", "schl\u00fcssel-\u00df", "\u043a\u043b\u044e\u0447", "\U0001f511"])
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_key_of_any_letters_matches_in_every_encoding_that_has_them(key: str, header: str) -> None:
    """Some clients send headers in UTF-8, others in ISO-8859-1."""
    settings = BridgeSettings(api_keys=(f"acme:{key}",))

    assert status(settings, key.encode("utf-8"), header=header) == 200
    if max(map(ord, key)) < 256:
        assert status(settings, key.encode("latin-1"), header=header) == 200
    assert status(settings, key.encode("utf-8")[:-1], header=header) == 401


def test_bytes_of_the_environment_that_are_no_text_are_a_key_too() -> None:
    """As Python keeps them: of an environment in ISO-8859-1, or in UTF-8 under a locale that knows ASCII alone."""
    for kept, sent in (("k\udcfc", (b"k\xfc", "k\u00fc".encode())), ("k\udcc3\udcbc", (b"k\xfc", "k\u00fc".encode()))):
        settings = BridgeSettings(api_keys=(f"acme:{kept}",))
        assert [status(settings, key) for key in sent] == [200, 200]


@pytest.mark.parametrize("entry", ["acme: abc", " acme :abc ", "acme:\tabc\n"])
def test_spaces_around_a_key_are_not_part_of_it(entry: str) -> None:
    """No client can send them: HTTP takes them off as well."""
    assert status(BridgeSettings(api_keys=(entry,)), "abc") == 200


def test_a_key_may_hold_colons_and_spaces() -> None:
    """The first colon parts it from its tenant."""
    settings = BridgeSettings(api_keys=("acme:a:b c", "acme:second"))

    assert status(settings, "a:b c") == 200
    assert status(settings, "second") == 200


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        (("acme:k1", "s3cret"), "tenant:key .*comma.*--api-keys-file"),
        (("acme:",), "tenant:key"),
        ((":s3cret",), "tenant:key"),
        (("acme:  ",), "tenant:key"),
        (("acme:s3c\x00ret",), "control characters in the key of 'acme'"),
        (("acme:s3c\nret",), "control characters in the key of 'acme'"),
        (("acme:s3cret", "globex:s3cret"), "given twice, to 'acme' and to 'globex'"),
        (("acme:s\u00e9cret", "globex:s\u00c3\u00a9cret"), "given twice, to 'acme' and to 'globex'"),
    ],
)
def test_keys_that_no_request_could_match_are_refused(entries: tuple[str, ...], why: str) -> None:
    """Without repeating them: they are secret. The last two are equal bytes in two encodings."""
    with pytest.raises(ValueError, match=why) as caught:
        BridgeSettings(api_keys=entries)

    assert "s3c" not in str(caught.value)


def test_a_key_given_twice_for_one_tenant_is_one_key() -> None:
    """In the list and in the file, for example."""
    assert status(BridgeSettings(api_keys=("acme:abc", "acme:abc")), "abc") == 200


@pytest.mark.parametrize("content", ["", "# nothing\n\n"])
def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path, content: str) -> None:
    """Else the bridge would be open to all who reach it."""
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(content)

    with pytest.raises(ConfigurationError, match="holds no key"):
        BridgeSettings(api_keys_file=path)


def test_keys_of_a_file_match_like_any(tmp_path: Path) -> None:
    """With commas, colons and other letters, and beside those of the list."""
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_bytes("# tenants\r\nacme: a,b \r\nglobex:s\u00e9:cret\n".encode())
    settings = BridgeSettings(api_keys=("initech:third",), api_keys_file=path)

    assert [status(settings, key) for key in ("a,b", "s\u00e9:cret", "third", "b")] == [200, 200, 200, 401]
    with pytest.raises(ConfigurationError, match="given twice, to 'other' and to 'acme'"):
        BridgeSettings(api_keys=("other:a,b",), api_keys_file=path)


def test_openness_to_everybody_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Once, at the start."""
    caplog.set_level(logging.WARNING)
    BridgeSettings(cors_origin=("*",)).warn()
    BridgeSettings(allow_host=("*",)).warn()
    BridgeSettings(cors_origin=("https://app.example",), allow_host=("bridge",)).warn()

    assert ["cors_origin is *" in one or "allow_host is *" in one for one in caplog.messages] == [True, True]
