"""Files of settings: how they are encoded, and who may have written them."""

import os
import sys
from pathlib import Path

import pytest

from support.settings import ROLES, House, Kitchen
from zmqrt.protocol import own_files
from zmqrt.protocol.settings import (
    Surroundings,
    resolve,
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An empty house."""
    return House(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", [".env", "zmqrt.toml"])
def test_a_file_is_read_in_whatever_encoding_its_mark_tells(house: House, name: str, encoding: str) -> None:
    """PowerShell writes UTF-16; without a mark it is said what to do, and no codec speaks."""
    text = "ZMQRT_PORT=81\r\n" if name == ".env" else "[kitchen]\r\nport = 81\r\n"
    (house.directory / name).write_bytes(text.encode(encoding))

    if encoding == "utf-16-le" and name == ".env":
        assert house.resolve().warnings == (f"ignored: {house.directory}/.env is not UTF-8 text; save it as UTF-8",)
    elif encoding == "utf-16-le":
        assert house.refusal() == "HERE/zmqrt.toml is not UTF-8 text; save it as UTF-8"
    else:
        assert house.load().port == 81


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
@pytest.mark.parametrize("name", [".env", "zmqrt.toml"])
def test_a_file_that_others_may_write_is_refused(house: House, name: str) -> None:
    """Whoever writes it decides what the program does. Reason and remedy are told."""
    path = house.directory / name
    path.write_text("ZMQRT_PORT=81" if name == ".env" else "[kitchen]\nport = 81")
    path.chmod(0o646)
    said = house.refusal()
    assert said == f"HERE/{name} may be written by other users and is not obeyed; run: chmod go-w {path}".replace(
        str(house.directory), "HERE"
    )

    path.chmod(0o644)
    assert house.load().port == 81


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused_unless_it_is_named(house: House) -> None:
    """Even then it cannot switch checks off."""
    for name, text in ((".env", "ZMQRT_PORT=81"), ("zmqrt.toml", "[kitchen]\nport = 81")):
        path = house.directory / name
        path.write_text(text)
        os.chown(path, 54321, 54321)
        assert house.refusal().startswith(f"HERE/{name} belongs to another user (uid 54321) and is not obeyed")
        path.unlink()

    named = house.directory / "other.toml"
    named.write_text("[kitchen]\nport = 81")
    os.chown(named, 54321, 54321)
    assert house.load(ZMQRT_CONFIG=str(named)).port == 81
    named.write_text("[kitchen]\ninsecure = true")
    assert "only a flag, the environment or a file of your own may say that" in house.refusal(ZMQRT_CONFIG=str(named))
    os.chown(named, 0, 0)
    assert house.load(ZMQRT_CONFIG=str(named)).insecure


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_what_the_environment_says_as_well_is_not_asked_of_a_file(house: House) -> None:
    """Docker Compose and systemd hand on a `.env` that lies where the program runs, and belongs to who deployed it."""
    house.dotenv("ZMQRT_PORT=81\nAPI_KEYS='me:s3cret'\n")
    os.chown(house.directory / ".env", 54321, 54321)

    resolved = house.resolve({"ZMQRT_PORT": "81", "API_KEYS": "me:s3cret"})
    assert (resolved.settings.port, resolved.notes) == (81, ())
    assert "belongs to another user" in house.refusal(ZMQRT_PORT="81")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_groups_that_let_nobody_else_in_may_write(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run as numbers, and with root's group; a group of other people may not. Nor may a stranger's sudo."""
    import grp

    path = house.directory / "zmqrt.toml"
    house.toml("[kitchen]\nport = 81")
    path.chmod(0o664)
    for uid, gid in ((0, 0), (0, 54321)):
        os.chown(path, uid, gid)
        assert house.load().port == 81
    os.chown(path, 0, grp.getgrnam("daemon").gr_gid)
    assert "may be written by other users" in house.refusal()

    os.chown(path, 54321, 54321)
    monkeypatch.setenv("SUDO_UID", "54322")
    assert "name it with --config" in house.refusal()
    monkeypatch.setenv("SUDO_UID", "54321")
    assert house.load().port == 81


@pytest.mark.skipif(sys.platform != "linux", reason="it tells what is mounted")
@pytest.mark.parametrize(
    ("kind", "is_obeyed"),
    [
        ("9p rw,aname=drvfs;path=C:", True),
        ("vfat /dev/sdb1 rw", True),
        ("9p none rw", False),
        ("ext4 /dev/sda rw", False),
    ],
)
def test_modes_count_where_there_are_modes(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str, *, is_obeyed: bool
) -> None:
    """A drive of Windows in WSL shows 0777 for all files, and chmod changes nothing there."""
    house.toml("[kitchen]\nport = 81")
    (house.directory / "zmqrt.toml").chmod(0o777)
    device = (house.directory / "zmqrt.toml").stat().st_dev
    mounts = house.user_directory / "mountinfo"
    mounts.write_text(f"22 27 {os.major(device)}:{os.minor(device)} / /mnt/c rw,noatime - {kind}\n")
    monkeypatch.setattr(own_files, "_MOUNTS", mounts)

    if is_obeyed:
        assert house.load().port == 81
    else:
        assert "may be written by other users" in house.refusal()


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
def test_folders_that_are_closed_to_this_user_hold_no_settings(house: House) -> None:
    """As after `sudo -u SERVICE zmqrt …` in root's own folder, or with the HOME of somebody else."""
    house.dotenv("ZMQRT_PORT=81")
    house.directory.chmod(0)
    house.user_directory.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(54321)
    try:
        assert house.load().port == 8000
    finally:
        if is_root:
            os.seteuid(0)
        for folder in (house.directory, house.user_directory):
            folder.chmod(0o700)


def test_a_foreign_dotenv_may_have_any_owner_and_mode(house: House) -> None:
    """Nothing of it is obeyed."""
    house.dotenv("POSTGRES_USER=me\n")
    (house.directory / ".env").chmod(0o666)

    assert house.load() == Kitchen()


def test_files_of_the_working_directory_that_count_are_named(house: House) -> None:
    """They may be there by accident. One without an effect is not worth a word."""
    house.toml("[kitchen]\nport = 2\n[garden]\ntrees = 1")
    house.dotenv("ZMQRT_MOCK=1")
    notes = [note.replace(str(house.directory), "HERE") for note in house.resolve().notes]
    assert notes == ["read from HERE/zmqrt.toml: port", "read from HERE/.env: mock"]

    house.toml("[garden]\ntrees = 1")
    (house.directory / ".env").unlink()
    assert house.resolve().notes == ()


def test_without_a_working_directory_or_a_home_there_are_no_files(house: House) -> None:
    """It was deleted; the user has no entry anywhere."""
    around = Surroundings(environ={"PORT": "3"}, directory=None, user_directory=None, roles=ROLES)

    assert resolve(Kitchen, surroundings=around).settings.port == 3
