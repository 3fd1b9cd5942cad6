"""`zmqrt keys fleet` and `zmqrt join`: a line made on the broker's machine is all that another machine needs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from zmqrt.client.cli.local_stack import StackPlan, check_keys
from zmqrt.client.cli.main import cli
from zmqrt.client.cli.settings_file import set_values, with_values
from zmqrt.client.config import ClientSettings
from zmqrt.protocol.authorized_keys import load_allowed, load_list
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.join_line import read_line
from zmqrt.protocol.keys import generate, load_peer, load_server
from zmqrt.protocol.settings import resolve
from zmqrt.worker.config import WorkerSettings
from zmqrt.worker.joining import joined


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a fleet's keys, and an empty house of settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    generate(tmp_path / "keys")
    return tmp_path / "keys"


def run(*words: str, given: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, words, input=given)


def invite(keys: Path, *words: str) -> str:
    """Make a line."""
    result = run("keys", "fleet", "invite", *words, "--keys", str(keys))
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def listed(keys: Path) -> dict[str, dict[str, Any]]:
    """Return what `list --json` says, by name."""
    found: list[dict[str, Any]] = json.loads(run("keys", "fleet", "list", "--json", "--keys", str(keys)).stdout)
    return {each["name"]: each for each in found}


def test_a_line_is_a_key_of_its_own_on_the_list_of_its_role(keys: Path) -> None:
    """Only its public half is kept; the usual port is that of the role."""
    line = read_line(invite(keys, "worker", "--name", "gpu-7", "--address", "10.0.0.5", "--expires", "24h"))

    assert line.brokers == ("tcp://10.0.0.5:7556",)
    assert line.peer_keys().server_public == load_server(keys).public
    assert load_list(keys, "workers")[line.peer_keys().own.public].expires == line.expires
    assert line.peer_keys().own.public not in load_allowed(keys, "clients")
    for path in keys.rglob("*"):
        assert not path.is_file() or line.peer_keys().own.secret not in path.read_bytes()


def test_a_machine_that_joined_needs_nothing_else(keys: Path, tmp_path: Path) -> None:
    """Keys are for their owner alone, settings name brokers and folder, for each role by itself."""
    client = invite(keys, "client", "--name", "me", "--address", "[fd00::1]:9000")
    worker = invite(keys, "worker", "--name", "gpu", "--address", "tcp://host:9001")
    assert run("join", "-", given=client).exit_code == 0
    assert run("join", worker).exit_code == 0
    (tmp_path / "line").write_text(client)
    assert run("join", "--file", "line").exit_code == 0

    found = resolve(ClientSettings).settings
    assert found.broker == ("tcp://[fd00::1]:9000",)
    assert found.keys is not None
    assert load_peer(found.keys, "client") == read_line(client).peer_keys()
    settings, own = joined(resolve(WorkerSettings).settings)
    assert (settings.broker, own) == (("tcp://host:9001",), read_line(worker).peer_keys())
    if os.name != "nt":
        assert {stat.S_IMODE(path.stat().st_mode) for path in found.keys.glob("*/secret.key")} == {0o600}


def test_a_cut_between_two_files_of_a_pair_leaves_one_that_works(keys: Path) -> None:
    """The public half follows from the secret one."""
    worker = invite(keys, "worker", "--address", "host")
    assert run("join", worker, "--keys", "here").exit_code == 0
    Path("here/worker/public.key").unlink()

    assert load_peer(Path("here"), "worker") == read_line(worker).peer_keys()


def test_one_folder_is_of_one_fleet(keys: Path, tmp_path: Path) -> None:
    """A second fleet's line would leave keys that no broker takes."""
    generate(tmp_path / "other")
    assert run("join", invite(keys, "client", "--address", "host")).exit_code == 0
    result = run("join", invite(tmp_path / "other", "client", "--address", "host"))

    assert isinstance(result.exception, ConfigurationError)
    assert "another fleet" in str(result.exception)


def test_revoking_by_name_ends_all_keys_of_that_name(keys: Path) -> None:
    """They stay on the list, with the time; a second time is an error."""
    line = read_line(invite(keys, "client", "--name", "me", "--address", "host"))
    assert run("keys", "fleet", "revoke", "me", "--keys", str(keys)).exit_code == 0

    assert line.peer_keys().own.public not in load_allowed(keys, "clients")
    assert listed(keys)["me"]["why_not"].startswith("the key of me was revoked (20")
    assert not listed(keys)["me"]["is_let_in"]
    again = run("keys", "fleet", "revoke", "me", "--keys", str(keys))
    assert str(again.exception) == "key me is revoked already"


def test_rotation_keeps_name_and_rights_and_lets_the_old_key_live_a_while(keys: Path) -> None:
    """Both are good until then."""
    old = read_line(invite(keys, "bridge", "--name", "edge", "--address", "host")).peer_keys().own.public
    words = ("keys", "fleet", "rotate", "edge", "--address", "host", "--overlap", "1h", "--keys", str(keys))
    new = read_line(run(*words).stdout.strip())

    allowed = load_allowed(keys, "clients")
    assert allowed[old] == allowed[new.peer_keys().own.public]
    assert new.role == "bridge"
    assert load_list(keys, "clients")[old].expires is not None
    assert load_list(keys, "clients")[new.peer_keys().own.public].expires is None


def test_a_worker_takes_a_line_from_a_file_and_refuses_one_of_another_role(keys: Path, tmp_path: Path) -> None:
    """And a file that others may read."""
    path = tmp_path / "line"
    path.write_text(invite(keys, "worker", "--address", "host") + "\n")
    path.chmod(0o600)
    assert joined(WorkerSettings(join_file=path))[0].broker == ("tcp://host:7556",)
    with pytest.raises(ConfigurationError, match="this line is for clients"):
        joined(WorkerSettings(join=invite(keys, "client", "--address", "host")))
    if os.name != "nt":
        path.chmod(0o644)
        with pytest.raises(ConfigurationError, match="holds a secret"):
            joined(WorkerSettings(join_file=path))


def test_settings_of_others_stay_in_a_file_that_is_edited(tmp_path: Path) -> None:
    """Comments, other keys and tables; what cannot be edited is left alone, and said."""
    text = '# mine\n[client]  # here\nbroker = ["old"]\ntimeout = "9s"\n\n[worker]\nport = 1\n'
    after = with_values(text, {"client": {"broker": ["new"]}, "bridge": {"keys": "k"}})
    assert after == (
        '# mine\n[client]  # here\nbroker = ["new"]\ntimeout = "9s"\n\n[worker]\nport = 1\n\n[bridge]\nkeys = "k"\n'
    )

    path = tmp_path / "odd.toml"
    path.write_text('client.broker = [\n"a"]\n')
    with pytest.raises(ConfigurationError, match=r"set there yourself: \[client\] broker = "):
        set_values(path, {"client": {"broker": ["new"]}})
    assert path.read_text() == 'client.broker = [\n"a"]\n'


def test_a_machine_that_has_joined_says_why_its_own_broker_cannot_use_those_keys(keys: Path, tmp_path: Path) -> None:
    """`zmqrt up` would start a worker that demands keys of a broker that has none."""
    check_keys(StackPlan())
    assert run("join", invite(keys, "worker", "--address", "host")).exit_code == 0

    check_keys(StackPlan(keys=tmp_path / "own"))
    with pytest.raises(ConfigurationError, match=r"could not meet.* give them a folder of their own: --keys DIR"):
        check_keys(StackPlan())
