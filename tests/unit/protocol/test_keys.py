"""Key files: made once, read back, and every mistake named with its file."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from zmqrt.protocol import keys, own_files
from zmqrt.protocol.authorized_keys import Principal, load_allowed
from zmqrt.protocol.errors import ConfigurationError


def test_a_fleets_keys_are_made_and_read_back(tmp_path: Path) -> None:
    """Each role finds its own pair and the broker's public key; the lists name them."""
    keys.generate(tmp_path)

    server = keys.load_server(tmp_path)
    worker = keys.load_peer(tmp_path, "worker")
    client = keys.load_peer(tmp_path, "client")
    assert worker.server_public == client.server_public == server.public
    assert load_allowed(tmp_path, "workers") == {worker.own.public: Principal("worker")}
    admin = keys.load_peer(tmp_path, "client", as_admin=True)
    assert load_allowed(tmp_path, "clients") == {
        client.own.public: Principal("client"),
        admin.own.public: Principal("admin", is_admin=True),
    }


def test_a_client_is_an_admin_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """Or where there is no other pair; a folder of before, without admin/, works as it did."""
    keys.generate(tmp_path)
    plain = (tmp_path / "client" / "public.key").read_bytes().strip()
    admin = (tmp_path / "admin" / "public.key").read_bytes().strip()
    assert plain != admin

    (tmp_path / "client").rename(tmp_path / "away")
    assert keys.load_peer(tmp_path, "client").own.public == admin
    (tmp_path / "away").rename(tmp_path / "client")
    (tmp_path / "admin").rename(tmp_path / "away")
    assert keys.load_peer(tmp_path, "client", as_admin=True).own.public == plain
    (tmp_path / "authorized_clients").write_text(f"{plain.decode()} client admin\n")
    assert load_allowed(tmp_path, "clients") == {plain: Principal("client", is_admin=True)}


def test_one_name_cannot_have_two_kinds_of_rights(tmp_path: Path) -> None:
    """Rights go by the name, so the plain key would be an admin's."""
    listing = tmp_path / "authorized_clients"
    listing.write_text(f"{'a' * 40} alice admin\n{'b' * 40} alice\n")

    with pytest.raises(ConfigurationError, match=r"line 2: alice is admin on one line and not on another"):
        load_allowed(tmp_path, "clients")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_files_from_windows_are_read(tmp_path: Path, encoding: str) -> None:
    """With a byte order mark, in UTF-16, with its line ends. Without a mark it is said what to do."""
    keys.generate(tmp_path)
    before = keys.load_peer(tmp_path, "client")
    for path in (*tmp_path.glob("*/*.key"), *tmp_path.glob("authorized_*")):
        path.write_bytes(path.read_text(encoding="ascii").replace("\n", "\r\n").encode(encoding))

    if encoding == "utf-16-be":
        with pytest.raises(ConfigurationError, match=r"public\.key is not UTF-8 text; save it as UTF-8"):
            keys.load_peer(tmp_path, "client")
        return
    assert keys.load_peer(tmp_path, "client") == before
    keys.load_server(tmp_path)
    assert len(load_allowed(tmp_path, "clients")) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """As ssh does; file and remedy are named. Each role, and the admin's too."""
    keys.generate(tmp_path)
    for role in ("broker", "worker", "client"):
        (tmp_path / role / "secret.key").chmod(mode)
    remedy = rf"secret\.key holds a secret.*mode {mode:04o}.*run: chmod 600 "
    for load in (
        lambda: keys.load_server(tmp_path),
        lambda: keys.load_peer(tmp_path, "worker"),
        lambda: keys.load_peer(tmp_path, "client"),
    ):
        with pytest.raises(ConfigurationError, match=remedy):
            load()

    keys.load_peer(tmp_path, "client", as_admin=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
@pytest.mark.parametrize("name", ["authorized_clients", "broker/public.key"])
def test_what_everybody_may_change_is_refused(tmp_path: Path, name: str) -> None:
    """Whoever adds a line would be let in. What keygen writes nobody else may change, whatever the umask."""
    before = os.umask(0)
    try:
        keys.generate(tmp_path)
    finally:
        os.umask(before)
    load_allowed(tmp_path, "clients")
    keys.load_peer(tmp_path, "worker")

    (tmp_path / name).chmod(0o666)
    with pytest.raises(ConfigurationError, match=f"{name} may be changed by every user"):
        _ = load_allowed(tmp_path, "clients"), keys.load_peer(tmp_path, "worker")


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    """0600 from the first byte on."""
    keys.generate(tmp_path)

    secrets = list(tmp_path.glob("*/secret.key"))
    assert len(secrets) == 4
    modes = {stat.S_IMODE(secret.stat().st_mode) for secret in secrets}
    assert modes == {0o600}


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
def test_secrets_of_a_container_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker Compose copies some into /run/secrets with mode 0444; anywhere else that is a mistake."""
    keys.generate(tmp_path / "fleet")
    (tmp_path / "fleet/worker/secret.key").chmod(0o444)
    with pytest.raises(ConfigurationError, match="holds a secret, and other users may read"):
        keys.load_peer(tmp_path / "fleet", "worker")

    monkeypatch.setattr(own_files, "_SECRETS", tmp_path.resolve())
    keys.load_peer(tmp_path / "fleet", "worker")


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
    assert load_allowed(tmp_path, "clients") == {
        odd.encode(): Principal("alice"),
        b"b" * 40: Principal("bbbbbbbb"),
    }

    listing.write_text("short alice\n")
    with pytest.raises(ConfigurationError, match="line 1"):
        load_allowed(tmp_path, "clients")


def test_rights_stand_behind_the_name(tmp_path: Path) -> None:
    """In any order, and the same on each line of a name."""
    one, two = "1" * 40, "2" * 40
    path = tmp_path / "authorized_clients"
    path.write_text(f"{one} edge bridge\n{two} boss bridge admin\n")
    path.chmod(0o600)
    assert load_allowed(tmp_path, "clients") == {
        one.encode(): Principal("edge", is_bridge=True),
        two.encode(): Principal("boss", is_admin=True, is_bridge=True),
    }

    path.write_text(f"{one} edge bridge\n{two} edge\n")
    with pytest.raises(ConfigurationError, match="edge is bridge on one line and not on another"):
        load_allowed(tmp_path, "clients")
    path.write_text(f"{one} edge bidge\n")
    with pytest.raises(ConfigurationError, match=r"\[admin\] \[bridge\]"):
        load_allowed(tmp_path, "clients")
