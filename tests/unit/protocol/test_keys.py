"""Key files: made once, read back, and every mistake named with its file."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from zmqrt.protocol import keys
from zmqrt.protocol.errors import ConfigurationError


def test_a_fleets_keys_are_made_and_read_back(tmp_path: Path) -> None:
    """Each role finds its own pair and the broker's public key; the lists name them."""
    keys.generate(tmp_path)

    server = keys.load_server(tmp_path)
    worker = keys.load_peer(tmp_path, "worker")
    client = keys.load_peer(tmp_path, "client")
    assert worker.server_public == client.server_public == server.public
    assert keys.load_allowed(tmp_path, "workers") == {worker.own.public: keys.Principal("worker")}
    assert keys.load_allowed(tmp_path, "clients") == {client.own.public: keys.Principal("client", is_admin=True)}


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    """0600 from the first byte on."""
    keys.generate(tmp_path)

    modes = {stat.S_IMODE((tmp_path / role / "secret.key").stat().st_mode) for role in ("broker", "worker", "client")}
    assert modes == {0o600}


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    """A second keygen into the same folder is refused: the first may be in use."""
    keys.generate(tmp_path)

    with pytest.raises(ConfigurationError, match="already holds"):
        keys.generate(tmp_path)


def test_a_secret_is_not_in_a_log(tmp_path: Path) -> None:
    """Printing a pair shows the public half alone."""
    keys.generate(tmp_path)
    pair = keys.load_server(tmp_path)

    assert pair.secret.decode() not in repr(pair)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    """The path and the command."""
    with pytest.raises(ConfigurationError, match=r"public\.key is missing; 'zmqrt keygen"):
        keys.load_server(tmp_path)


def test_halves_of_two_pairs_are_told(tmp_path: Path) -> None:
    """A public key copied beside another secret is an error here, not a silent handshake failure later."""
    keys.generate(tmp_path)
    (tmp_path / "broker" / "public.key").write_text((tmp_path / "client" / "public.key").read_text())

    with pytest.raises(ConfigurationError, match="do not belong together"):
        keys.load_server(tmp_path)


def test_allow_lists_take_comments_and_name_bad_lines(tmp_path: Path) -> None:
    """A key may begin with '#'; only a '#' that stands alone begins a comment."""
    odd = "#" + "a" * 39
    listing = tmp_path / "authorized_clients"
    listing.write_text(f"# a comment\n\n{odd} alice\n{'b' * 40}\n")
    assert keys.load_allowed(tmp_path, "clients") == {
        odd.encode(): keys.Principal("alice"),
        b"b" * 40: keys.Principal("bbbbbbbb"),
    }

    listing.write_text("short alice\n")
    with pytest.raises(ConfigurationError, match="line 1"):
        keys.load_allowed(tmp_path, "clients")
