"""Files that are no certificate are refused by a sentence that names them; what a peer sends too much is not kept."""

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from support.certificates import make_pem
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.tls import Certificate, TlsStream, load_context
from zmqrt.protocol.errors import ConfigurationError


def test_certificate_and_key_may_stand_in_one_file(tmp_path: Path) -> None:
    """Then that file is the secret."""
    pem = make_pem(tmp_path)
    both = tmp_path / "both.pem"
    both.write_text(pem.chain.read_text(encoding="utf-8") + pem.key.read_text(encoding="utf-8"), encoding="utf-8")
    both.chmod(0o644)

    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_context(both, None)
    both.chmod(0o600)
    load_context(both, None)


def test_an_encrypted_key_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    """OpenSSL would ask the terminal, and a service would stand still."""
    pem = make_pem(tmp_path, password="secret")

    with pytest.raises(ConfigurationError, match="encrypted"):
        load_context(pem.chain, pem.key)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file that is missing, a key of another certificate, no PEM, a key that others may read."""
    (tmp_path / "other").mkdir()
    pem, other = make_pem(tmp_path), make_pem(tmp_path / "other")
    nonsense = tmp_path / "nonsense.crt"
    nonsense.write_text("no certificate", encoding="utf-8")

    with pytest.raises(ConfigurationError, match=r"missing\.crt cannot be read: No such file"):
        load_context(tmp_path / "missing.crt", pem.key)
    with pytest.raises(ConfigurationError, match="are no certificate with its private key"):
        load_context(pem.chain, other.key)
    with pytest.raises(ConfigurationError, match=r"nonsense\.crt and .* are no certificate"):
        load_context(nonsense, pem.key)
    pem.key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_context(pem.chain, pem.key)


def test_a_key_alone_is_a_mistake() -> None:
    """Nobody means to serve in clear who names a key."""
    with pytest.raises(ConfigurationError, match="tls_cert"):
        BridgeSettings(tls_key=Path("tls.key"))


def test_keys_in_clear_off_loopback_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """And not where TLS is spoken, here or by a proxy that is named."""
    reachable = BridgeSettings(host="0.0.0.0", api_keys=("acme:key",))
    reachable.warn()

    assert caplog.text.count("in clear") == 1
    replace(reachable, tls_cert=Path("bridge.crt")).warn()
    replace(reachable, trusted_proxy=("10.0.0.1",)).warn()
    replace(reachable, host="127.0.0.1").warn()
    assert caplog.text.count("in clear") == 1


class Wire(asyncio.Transport):
    """A socket, for its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.sent += data

    def is_closing(self) -> bool:
        """Stay open."""
        return False


def test_bytes_behind_a_farewell_are_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL reads none of them: kept, they would fill the memory of a bridge for as long as an answer is made."""
    pem, wire, make = make_pem(tmp_path), Wire(), ssl.MemoryBIO
    incoming, outgoing, made = make(), make(), list[ssl.MemoryBIO]()
    caller = pem.trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")

    def keep() -> ssl.MemoryBIO:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(ssl, "MemoryBIO", keep)
    stream = TlsStream(wire, Certificate(pem.chain, pem.key))
    with pytest.raises(ssl.SSLWantReadError):
        caller.do_handshake()
    stream.read(outgoing.read())
    incoming.write(bytes(wire.sent))
    caller.do_handshake()
    caller.write(b"words")
    with pytest.raises(ssl.SSLWantReadError):
        caller.unwrap()

    assert stream.read(outgoing.read()) == [b"words", b""]
    for _ in range(4):
        assert stream.read(b"x" * 100_000) == []
    assert sum(memory.pending for memory in made) == 0
