"""The settings loader: precedence, names, origins, and what it refuses."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.settings import ROLES, Garden, House, Kitchen, origin_of
from zmqrt.client.cli.cmd_config import settings_by_table, settings_template
from zmqrt.protocol.settings import (
    CommonSettings,
    known_roles,
    settings_of,
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An empty house."""
    return House(tmp_path)


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
