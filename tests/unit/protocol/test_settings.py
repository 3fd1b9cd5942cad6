"""The settings loader: precedence, names, origins, and what it refuses."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.client.cli.cmd_config import settings_by_table, settings_template
from zmqrt.protocol import own_files
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.settings import (
    CommonSettings,
    Resolved,
    Surroundings,
    known_roles,
    resolve,
    setting,
    settings_of,
)


@dataclass(frozen=True, kw_only=True)
class Kitchen(CommonSettings):
    """One field of every kind."""

    role: ClassVar[str] = "kitchen"

    request_timeout_s: float = setting(30.0, env=("REQUEST_TIMEOUT_SEC",), minimum=0.001, help="Longest wait.")
    batch_max_latency_ms: float = setting(50.0, env=("BATCH_MAX_LATENCY_MS",), help="Longest wait for a batch.")
    held_bytes: int = setting(1 << 30, help="Most memory for bodies.")
    port: int = setting(8000, env=("PORT",), minimum=0, maximum=65535, help="Port.")
    broker: tuple[str, ...] = setting(("tcp://127.0.0.1:7555",), env=("GATEWAY_URL",), help="Where the broker is.")
    mock: bool = setting(False, env=("USE_MOCK_MODEL",), help="No model.")
    api_keys: tuple[str, ...] = setting((), env=("API_KEYS",), secret=True, help="Who may ask.")
    share: float | None = setting(None, minimum=0, maximum=1, help="Part of a whole.")
    old_limit: int | None = setting(None, env=("OLD_LIMIT",), deprecated="use port", help="Gone.")

    def __post_init__(self) -> None:
        """Refuse a contradiction."""
        if self.mock and self.port == 1:
            raise ValueError("mock needs another port than 1")


@dataclass(frozen=True, kw_only=True)
class Garden(CommonSettings):
    """A second role, to be checked though it is not started."""

    role: ClassVar[str] = "garden"

    broker: tuple[str, ...] = setting(("tcp://127.0.0.1:7555",), help="Where the broker is.")
    trees: int = setting(3, help="How many.")
    pause_s: float = setting(0.0, help="Pause.")


ROLES: Mapping[str, type[CommonSettings]] = {"kitchen": Kitchen, "garden": Garden}


class House:
    """A folder, a user's folder and an environment to load from."""

    def __init__(self, path: Path) -> None:
        self.directory = path / "here"
        self.user_directory = path / "user"
        self.directory.mkdir()
        self.user_directory.mkdir()

    def toml(self, text: str) -> None:
        """Write zmqrt.toml into the working directory."""
        (self.directory / "zmqrt.toml").write_text(text, encoding="utf-8")

    def dotenv(self, text: str) -> None:
        """Write .env into the working directory."""
        (self.directory / ".env").write_text(text, encoding="utf-8")

    def resolve(
        self, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
    ) -> Resolved[Kitchen]:
        """Load the kitchen's settings."""
        around = Surroundings(
            environ=environ or {}, directory=self.directory, user_directory=self.user_directory, roles=ROLES
        )
        return resolve(Kitchen, flags, surroundings=around)

    def load(self, **environ: str) -> Kitchen:
        """Load from files and the environment."""
        return self.resolve(environ).settings

    def refusal(self, **environ: str) -> str:
        """Return the words with which loading is refused."""
        with pytest.raises(ConfigurationError) as caught:
            self.load(**environ)
        return str(caught.value).replace(str(self.directory), "HERE")


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An empty house."""
    return House(tmp_path)


def origin_of(resolved: Resolved[Kitchen], name: str) -> str:
    """Return where a setting's value came from, by the name of the file alone."""
    origin = next(each.origin for each in resolved.origins if each.name == name)
    return origin.rsplit("/", 1)[-1]


def test_without_any_source_the_defaults_hold(house: House) -> None:
    """Nothing set, nothing changed."""
    resolved = house.resolve()

    assert resolved.settings == Kitchen()
    assert {each.origin for each in resolved.origins} == {"default"}


def test_each_source_wins_over_the_weaker_ones(house: House) -> None:
    """Defaults < shared table < role's table < .env < environment < flags; each value knows its source."""
    seen = [house.resolve()]
    house.toml("[all]\nport = 1")
    seen.append(house.resolve())
    house.toml("[all]\nport = 1\n[kitchen]\nport = 2")
    seen.append(house.resolve())
    house.dotenv("PORT=3")
    seen.append(house.resolve())
    seen.append(house.resolve({"PORT": "4"}))
    seen.append(house.resolve({"PORT": "4", "ZMQRT_PORT": "5"}))
    seen.append(house.resolve({"PORT": "4", "ZMQRT_PORT": "5"}, {"port": "6"}))

    assert [(each.settings.port, origin_of(each, "port")) for each in seen] == [
        (8000, "default"),
        (1, "zmqrt.toml [all]"),
        (2, "zmqrt.toml [kitchen]"),
        (3, ".env PORT"),
        (4, "environment PORT"),
        (5, "environment ZMQRT_PORT"),
        (6, "flag --port"),
    ]


@pytest.mark.parametrize("name", ["ZMQRT_REQUEST_TIMEOUT", "ZMQRT_REQUEST_TIMEOUT_SEC", "REQUEST_TIMEOUT_SEC"])
def test_historic_names_work_bare_and_with_the_prefix(house: House, name: str) -> None:
    """Whoever set a variable years ago need not change it."""
    assert house.load(**{name: "5"}).request_timeout_s == 5.0


def test_an_empty_variable_is_none(house: House) -> None:
    """Compose files pass variables on that nobody set."""
    assert house.load(PORT="", ZMQRT_API_KEYS="").port == 8000


def test_durations_and_sizes_carry_their_units(house: House) -> None:
    """A unit is converted to the field's own; a bare number is in it already."""
    loaded = house.load(ZMQRT_REQUEST_TIMEOUT="2m", BATCH_MAX_LATENCY_MS="1.5s", ZMQRT_HELD="64MiB")

    assert (loaded.request_timeout_s, loaded.batch_max_latency_ms, loaded.held_bytes) == (120.0, 1500.0, 64 << 20)


def test_lists_split_at_commas_in_text_and_keep_their_parts_in_toml(house: House) -> None:
    """Both ways of writing a list say the same."""
    house.toml('[kitchen]\nbroker = ["tcp://a:1", "tcp://b:2"]')

    assert house.load().broker == house.load(GATEWAY_URL="tcp://a:1, tcp://b:2").broker == ("tcp://a:1", "tcp://b:2")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[kitchen]\nprot = 1", "unknown key prot in HERE/zmqrt.toml [kitchen]; did you mean port?"),
        ("[garden]\ntress = 1", "unknown key tress in HERE/zmqrt.toml [garden]; did you mean trees?"),
        ("[garden]\ntrees = 'many'", "setting trees = 'many' (HERE/zmqrt.toml [garden]): expected a whole number"),
        ("[all]\nlog_levle = 'info'", "unknown key log_levle in HERE/zmqrt.toml [all]; did you mean log_level?"),
        ("[kitchn]\nport = 1", "unknown table [kitchn] in HERE/zmqrt.toml; did you mean kitchen?"),
        ("port = 1", "key port in HERE/zmqrt.toml stands outside a table; put it under [all]"),
        (
            "[kitchen]\nport = true",
            "setting port = True (HERE/zmqrt.toml [kitchen]): expected a whole number from 0 to 65535",
        ),
        ("[kitchen]\nmock = 1", "setting mock = 1 (HERE/zmqrt.toml [kitchen]): expected true or false"),
        ("[kitchen]\nbroker = [1]", "setting broker = [1] (HERE/zmqrt.toml [kitchen]): expected a list of texts"),
        (
            "[kitchen",
            "cannot read HERE/zmqrt.toml: Expected ']' at the end of a table declaration (at end of document)",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_named(house: House, toml: str, message: str) -> None:
    """The key, where it stands, and what was meant: also in the table of a role that is not started."""
    house.toml(toml)

    assert house.refusal() == message


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ZMQRT_PORT",
            "http",
            "setting port = 'http' (environment ZMQRT_PORT): expected a whole number from 0 to 65535",
        ),
        (
            "ZMQRT_PORT",
            "65536",
            "setting port = '65536' (environment ZMQRT_PORT): expected a whole number from 0 to 65535",
        ),
        ("ZMQRT_MOCK", "ja", "setting mock = 'ja' (environment ZMQRT_MOCK): expected true or false"),
        (
            "ZMQRT_REQUEST_TIMEOUT_SEC",
            "0",
            (
                "setting request_timeout = '0' (environment ZMQRT_REQUEST_TIMEOUT_SEC): "
                "expected a duration such as 10s, 250ms or 2m (a bare number counts seconds) of at least 1ms"
            ),
        ),
        ("ZMQRT_SHARE", "nan", "setting share = 'nan' (environment ZMQRT_SHARE): expected a number from 0 to 1"),
        (
            "ZMQRT_LOG_LEVEL",
            "WARN",
            (
                "setting log_level = 'WARN' (environment ZMQRT_LOG_LEVEL): "
                "expected one of debug, info, warning, error, critical"
            ),
        ),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(house: House, variable: str, value: str, message: str) -> None:
    """The variable, its value, and what was expected."""
    assert house.refusal(**{variable: value}) == message


def test_an_unknown_name_in_the_environment_warns_once_and_nothing_else(house: House) -> None:
    """Others may have put it there, or a newer version; files stay strict."""
    resolved = house.resolve({"ZMQRT_PROT": "1", "ZMQRT_XYZZY": "1"})

    assert resolved.settings == Kitchen()
    assert resolved.warnings == (
        "unknown in the environment, and ignored: ZMQRT_PROT; did you mean ZMQRT_PORT?, ZMQRT_XYZZY",
    )


def test_what_kubernetes_makes_of_the_name_of_a_service_is_not_ours(house: House) -> None:
    """Services named zmqrt, zmqrt-broker and zmqrt-metrics, in every form; a name that we know too."""
    links = {
        "ZMQRT_SERVICE_HOST": "10.0.0.1",
        "ZMQRT_SERVICE_PORT": "8000",
        "ZMQRT_SERVICE_PORT_HTTP": "8000",
        "ZMQRT_PORT": "tcp://10.0.0.1:8000",
        "ZMQRT_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "ZMQRT_PORT_8000_TCP_PROTO": "tcp",
        "ZMQRT_PORT_8000_TCP_PORT": "8000",
        "ZMQRT_PORT_8000_TCP_ADDR": "10.0.0.1",
        "ZMQRT_BROKER_SERVICE_HOST": "10.0.0.2",
        "ZMQRT_BROKER_PORT": "tcp://10.0.0.2:7555",
        "ZMQRT_BROKER_PORT_7555_TCP": "tcp://10.0.0.2:7555",
        "ZMQRT_GARDEN_PORT": "udp://10.0.0.2:7555",
    }
    resolved = house.resolve(links)

    assert resolved.settings == Kitchen()
    (warning,) = resolved.warnings
    assert all(name in warning for name in links)
    assert "enableServiceLinks" in warning
    assert house.load(**links, ZMQRT_BROKER="tcp://10.0.0.2:7555").broker == ("tcp://10.0.0.2:7555",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PORT", value) for value in ("tcp://10.0.0.1:80", "http", "-1", "70000", "8000/tcp", "{{port}}")),
        *(("LOG_LEVEL", value) for value in ("WARN", "trace", "20", "loud", "info,sqlx=debug")),
        *(("REQUEST_TIMEOUT_SEC", value) for value in ("soon", "0", "-5")),
        ("USE_MOCK_MODEL", "ja"),
        ("OLD_LIMIT", "many"),
    ],
)
def test_a_bare_name_whose_value_cannot_be_ours_warns_and_changes_nothing(house: House, name: str, value: str) -> None:
    """Such names belong to everybody. The next source counts."""
    house.toml("[kitchen]\nrequest_timeout = 7\nport = 7\nlog_level = 'error'")
    without = house.resolve()
    resolved = house.resolve({name: value})

    assert resolved.settings == without.settings
    (warning,) = resolved.warnings
    assert warning.startswith(f"{name} in the environment is ignored: {value!r}")
    assert "ZMQRT_" in warning


def test_a_dotenv_of_another_program_changes_nothing(house: House) -> None:
    """Its PORT is not ours; where the file names something of zmqrt, or lies beside our settings file, it is."""
    house.dotenv("PORT=5000\nLOG_LEVEL=debug\nSECRET=x\n")
    resolved = house.resolve()
    assert resolved.settings == Kitchen()
    assert [warning.split(" ")[0] for warning in resolved.warnings] == ["PORT", "LOG_LEVEL"]

    house.dotenv("PORT=5000\nGATEWAY_URL=tcp://a:1\n")
    assert house.load().port == 5000

    house.dotenv("PORT=5000\n")
    house.toml("")
    assert house.load().port == 5000


def test_a_dotenv_that_cannot_be_read_and_is_not_ours_changes_nothing(house: House) -> None:
    """Latin-1, no text at all."""
    (house.directory / ".env").write_bytes(b"NAME=caf\xe9\nGATEWAY_URL=tcp://a:1\n")
    assert house.load().broker == ("tcp://a:1",)

    (house.directory / ".env").write_bytes(b"\0\1\2")
    assert house.resolve().settings == Kitchen()

    (house.directory / ".env").write_bytes(b"ZMQRT_API_KEYS=acme:caf\xe9\n")
    assert house.refusal() == "ZMQRT_API_KEYS in .env is not UTF-8 text; save the file as UTF-8"


@pytest.mark.parametrize("written", ["{}", '"{}"', "'{}'", "{}\r", " {} ", ' "{}"\r\n'])
def test_quotes_and_white_space_around_a_value_are_taken_off_everywhere(house: House, written: str) -> None:
    """`docker --env-file` keeps quotes, Windows ends lines with a carriage return. Every kind of setting."""
    values = {
        "ZMQRT_PORT": "81",
        "ZMQRT_REQUEST_TIMEOUT": "2m",
        "ZMQRT_HELD": "64MiB",
        "ZMQRT_MOCK": "true",
        "ZMQRT_SHARE": "0.5",
        "ZMQRT_KEYS": "/some/keys",
        "ZMQRT_LOG_LEVEL": "error",
        "GATEWAY_URL": "tcp://a:1,tcp://b:2",
        "ZMQRT_API_KEYS": "me:s3cret,you:x",
    }
    plain = house.load(**values)
    assert plain.broker == ("tcp://a:1", "tcp://b:2")
    assert plain.keys == Path("/some/keys")

    quoted = {name: written.format(value) for name, value in values.items()}
    assert house.load(**quoted) == plain
    flags = {name.removeprefix("ZMQRT_").lower(): value for name, value in quoted.items() if name != "GATEWAY_URL"}
    assert house.resolve(flags={**flags, "broker": quoted["GATEWAY_URL"]}).settings == plain


def test_each_part_of_a_list_may_have_its_own_quotes(house: House) -> None:
    """And a quote that has no partner stays."""
    assert house.load(GATEWAY_URL='"tcp://a:1", "tcp://b:2"').broker == ("tcp://a:1", "tcp://b:2")
    assert house.load(ZMQRT_API_KEYS='me:a"b').api_keys == ('me:a"b',)


def test_white_space_alone_is_no_value(house: House) -> None:
    """As an empty one."""
    assert house.load(ZMQRT_PORT=" ", ZMQRT_MOCK='""', PORT="\r").port == 8000


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


def test_a_secret_in_a_flag_is_warned_of(house: House) -> None:
    """Every user of the machine can list processes."""
    resolved = house.resolve(flags={"api_keys": "me:s3cret"})

    (warning,) = resolved.warnings
    assert warning.startswith("--api-keys shows its secret to every user of this machine")
    assert "s3cret" not in warning


def test_variables_that_are_no_settings_are_not_judged(house: House) -> None:
    """The folder of models and the switch for tracebacks belong to no role."""
    assert house.resolve({"ZMQRT_CACHE": "x", "ZMQRT_DEBUG": "1", "ZMQRT_API_KEY": "k"}).warnings == ()


def test_an_unknown_key_in_dotenv_is_named_and_foreign_ones_are_not_judged(house: House) -> None:
    """Names with our prefix are ours; a .env may hold other programs' names."""
    house.dotenv("POSTGRES_USER=me\nZMQRT_PORTS=1\n")

    assert house.refusal() == "unknown variable ZMQRT_PORTS in .env; did you mean ZMQRT_PORT?"


def test_a_contradiction_between_settings_is_refused(house: House) -> None:
    """A role's own check speaks with the same exit code."""
    assert house.refusal(PORT="1", USE_MOCK_MODEL="true") == "kitchen settings: mock needs another port than 1"


def test_choices_are_read_in_any_case(house: House) -> None:
    """LOG_LEVEL=INFO is what people write."""
    assert house.load(LOG_LEVEL="WARNING").log_level == "warning"


def test_a_secret_is_never_shown(house: House) -> None:
    """Neither among the origins nor in a refusal."""
    resolved = house.resolve({"API_KEYS": "me:s3cret"})
    house.toml("[kitchen]\napi_keys = 3")

    assert resolved.settings.api_keys == ("me:s3cret",)
    assert "s3cret" not in "".join(each.shown for each in resolved.origins)
    assert house.refusal() == "setting api_keys = **** (HERE/zmqrt.toml [kitchen]): expected a list of texts"


def test_a_deprecated_setting_works_and_warns(house: House) -> None:
    """Old set-ups go on, and say what to change."""
    resolved = house.resolve({"OLD_LIMIT": "7"})

    assert resolved.settings.old_limit == 7
    assert resolved.warnings == ("setting old_limit (environment OLD_LIMIT) has no effect any more: use port",)


def test_the_file_is_found_in_three_places(house: House) -> None:
    """ZMQRT_CONFIG, then the working directory, then the user's folder; only one of them is read."""
    (house.user_directory / "zmqrt.toml").write_text("[kitchen]\nport = 1", encoding="utf-8")
    in_user_folder = house.load().port
    house.toml("[kitchen]\nport = 2")
    in_directory = house.load().port
    other = house.directory / "other.toml"
    other.write_text("[garden]\ntrees = 4", encoding="utf-8")

    assert (in_user_folder, in_directory, house.load(ZMQRT_CONFIG=str(other)).port) == (1, 2, 8000)
    assert "cannot read" in house.refusal(ZMQRT_CONFIG="no/such/file.toml")


def test_a_file_from_a_windows_editor_is_read(house: House) -> None:
    """A byte-order mark is no key."""
    house.toml("\ufeff[kitchen]\nport = 2")

    assert house.load().port == 2


def test_the_template_changes_nothing_when_every_key_is_uncommented(house: House) -> None:
    """`zmqrt config init` writes keys and defaults that load to the defaults."""
    lines = settings_template(ROLES).splitlines()
    keys = [line.removeprefix("# ") for line in lines if " = " in line and "not set by default" not in line]
    tables = [line for line in lines if line.startswith("[")]

    house.toml(
        "\n".join(line.removeprefix("# ") for line in lines if line in tables or line.removeprefix("# ") in keys)
    )

    assert tables == ["[all]", "[kitchen]", "[garden]"]
    assert {key.split(" = ")[0] for key in keys} == {
        *("log_level", "log_format", "insecure", "broker", "request_timeout", "batch_max_latency"),
        *("held", "port", "mock", "api_keys", "trees", "pause"),
    }
    assert len(keys) == 12
    assert house.load() == Kitchen()


def test_every_setting_stands_in_one_table_and_a_deprecated_one_in_none() -> None:
    """The template and the page in docs/ are made from this."""
    tables = {name: [each.name for each in table] for name, table in settings_by_table(ROLES).items()}

    assert tables["all"] == ["log_level", "log_format", "keys", "insecure", "broker"]
    assert tables["garden"] == ["trees", "pause"]
    assert "old_limit" not in tables["kitchen"]


@given(seconds=st.floats(min_value=0, max_value=1e6).map(lambda number: round(number, 6)))
def test_a_duration_written_is_read_back(seconds: float) -> None:
    """`config show` prints values that can be typed."""
    pause = next(one for one in settings_of(Garden) if one.field == "pause_s")

    assert pause.parse(pause.show(seconds)) == pytest.approx(seconds)


@given(size=st.integers(min_value=0, max_value=1 << 50))
def test_a_size_written_is_read_back(size: int) -> None:
    """The same for sizes, exactly."""
    held = next(one for one in settings_of(Kitchen) if one.field == "held_bytes")

    assert held.parse(held.show(size)) == size


@given(text=st.text())
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    """No value, however odd, ends in another error."""
    for one in settings_of(Kitchen):
        try:
            one.parse(text)
        except ValueError as error:
            assert str(error).startswith("expected ")


@pytest.mark.parametrize("cls", [Kitchen, Garden, *known_roles().values()])
def test_every_default_is_a_value_that_its_setting_accepts(cls: type[CommonSettings]) -> None:
    """A default outside the limits would be refused as soon as somebody wrote it down."""
    for one in settings_of(cls):
        if one.default is not None and not one.declared.secret:
            assert one.parse(one.show(one.default)) == one.default, one.name


@pytest.mark.parametrize("cls", [Kitchen, Garden, *known_roles().values()])
def test_no_two_settings_of_a_role_share_a_name(cls: type[CommonSettings]) -> None:
    """Neither a key, nor a flag, nor a variable means two things."""
    settings = settings_of(cls)
    variables = [name for one in settings for name in one.env_names]

    assert len({one.name for one in settings}) == len({one.flag for one in settings}) == len(settings)
    assert len(set(variables)) == len(variables)
    assert {field.name for field in dataclasses.fields(cls)} == {one.field for one in settings}
