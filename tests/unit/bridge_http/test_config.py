"""What a bridge's settings mean."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol.api_keys import ApiKey, read_ring
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.settings import Resolved, Surroundings, resolve


def settings(folder: Path, environ: dict[str, str] | None = None, **flags: object) -> Resolved[BridgeSettings]:
    """Return the settings that flags and environment make."""
    around = Surroundings(
        environ=environ or {}, directory=folder, user_directory=folder, roles={"bridge": BridgeSettings}
    )
    return resolve(BridgeSettings, flags, surroundings=around)


def ring(*entries: str) -> dict[bytes, ApiKey]:
    """Return the keys that entries mean."""
    return read_ring(entries)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HOST", value) for value in ("x86_64-conda-linux-gnu", "my-laptop", "tcp://10.0.0.1:80", "*")),
        *(("API_KEYS", value) for value in ("sk-abc", "sk-abc,sk-def", "x:")),
        ("PORT", "tcp://10.0.0.1:8000"),
    ],
)
def test_variables_of_other_programs_change_nothing(tmp_path: Path, name: str, value: str) -> None:
    """Compilers and shells set HOST, other products API_KEYS. A secret is not shown."""
    found = settings(tmp_path, {name: value})

    assert found.settings == BridgeSettings()
    (warning,) = found.warnings
    assert warning.startswith(f"{name} in the environment is ignored")
    assert (value in warning) == (name != "API_KEYS")


def test_what_may_be_ours_is_ours(tmp_path: Path) -> None:
    """An address, this machine's own name; keys with a mistake among them are an error, not an open door."""
    for host in ("0.0.0.0", "::", "[::1]", "localhost", "10.1.2.3"):
        assert settings(tmp_path, {"HOST": host}).settings.host == host
    assert settings(tmp_path, host="my-laptop").settings.host == "my-laptop"

    with pytest.raises(ConfigurationError, match=r"api_keys.*tenant:key"):
        settings(tmp_path, {"API_KEYS": "acme:s3cret,sk-abc"})


@pytest.mark.parametrize(
    "written",
    [
        '"acme:secret,globex:other"',
        "'acme:secret,globex:other'",
        '"acme:secret","globex:other"',
        'acme:"secret",globex:"other"',
        "acme:secret,globex:other\r",
        " acme : secret , globex : other ",
    ],
)
def test_quotes_and_spaces_around_keys_are_no_part_of_them(tmp_path: Path, written: str) -> None:
    """`docker --env-file` keeps quotes."""
    assert settings(tmp_path, {"API_KEYS": written}).settings.key_ring == ring("acme:secret", "globex:other")


@pytest.mark.parametrize("written", ['"acme:secret', "acme:secret'", 'acme:secret"'])
def test_one_quote_of_a_pair_is_refused(tmp_path: Path, written: str) -> None:
    """By its name."""
    with pytest.raises(ConfigurationError, match="quotes"):
        settings(tmp_path, {"API_KEYS": written})


def test_keys_may_stand_in_a_file(tmp_path: Path) -> None:
    """One a line, with comments; in any encoding that its mark tells. They count beside those given otherwise."""
    file = tmp_path / "keys"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes("# who may ask\r\nacme:secret\r\n\r\n'globex:a,b'\r\n".encode(encoding))
        file.chmod(0o600)
        found = settings(tmp_path, {"API_KEYS": "third:x"}, api_keys_file=str(file)).settings
        assert found.key_ring == ring("third:x", "acme:secret", "globex:a,b")
        found.check_exposure()


def test_what_is_wrong_with_a_file_of_keys_is_said_without_the_keys(tmp_path: Path) -> None:
    """Its name, and the line."""
    file = tmp_path / "keys"
    with pytest.raises(ConfigurationError, match=r"keys cannot be read: No such file"):
        settings(tmp_path, api_keys_file=str(file))

    file.write_text("acme:secret\nsk-abc\n")
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"keys, line 2: expected .* tenant:key") as caught:
        settings(tmp_path, api_keys_file=str(file))
    assert "sk-abc" not in str(caught.value)

    file.write_text("acme:secret\nglobex:secret\n")
    with pytest.raises(ConfigurationError, match="given twice"):
        settings(tmp_path, api_keys_file=str(file))


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes there")
def test_a_file_of_keys_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """As ssh does; one of another owner (a mounted secret) is theirs to keep."""
    file = tmp_path / "keys"
    file.write_text("acme:secret\n")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"other users may read or change it \(mode 0644\); run: chmod 600"):
        settings(tmp_path, api_keys_file=str(file))

    if os.geteuid() == 0:
        os.chown(file, 54321, 54321)
        assert settings(tmp_path, api_keys_file=str(file)).settings.key_ring == ring("acme:secret")
