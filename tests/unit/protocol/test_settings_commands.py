"""Settings as a command line: help that teaches, exit codes, and subcommands."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner, Result

from zmqrt.protocol.errors import ConnectError
from zmqrt.protocol.settings import CommonSettings, command, is_named, options, setting


@dataclass(frozen=True, kw_only=True)
class Bakery(CommonSettings):
    """A role for these tests."""

    role: ClassVar[str] = "bakery"

    bake_s: float = setting(60.0, env=("BAKE_SEC",), help="Time in the oven.")
    bread: tuple[str, ...] = setting((), help="What to bake.")
    secret: str = setting("", secret=True, help="The recipe.")
    steam: bool = setting(True, help="Use steam.")
    old: int = setting(0, env=("OLD_OVEN",), deprecated="buy a new one", help="Old.")


@command(Bakery, name="bakery", help="Bake bread.", epilog="See the cookbook.")
def bakery(settings: Bakery) -> None:
    """Print what was asked for."""
    click.echo(f"{settings.bake_s} {settings.bread} {settings.steam} {settings.log_level}")
    if settings.bread == ("stone",):
        raise ConnectError("nobody answers at tcp://127.0.0.1:1; start zmqrt-broker")


@click.group()
def shop() -> None:
    """Sell bread."""


@shop.command()
@options(Bakery)
@click.argument("customer")
@click.option("--count", default=1)
def sell(settings: Bakery, customer: str, count: int) -> None:
    """Sell some bread to a customer."""
    click.echo(f"{count} {','.join(settings.bread)} for {customer}")


@shop.command()
@options(Bakery)
def ask(settings: Bakery) -> None:
    """Say whether somebody named a bread."""
    click.echo(f"{','.join(settings.bread)}: {is_named('bread')}")


@pytest.fixture(autouse=True)
def empty_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings but those that a test makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def run(*words: str, program: click.Command = bakery, **environ: str) -> Result:
    """Run a program in this process."""
    return CliRunner().invoke(program, words, env=environ)


def test_help_names_every_other_way_to_set_a_flag() -> None:
    """Environment names and default stand beside the flag; what is deprecated does not."""
    result = run("--help")
    words = " ".join(result.output.split())

    assert result.exit_code == 0
    assert "--bake DURATION Time in the oven. [env var: ZMQRT_BAKE, BAKE_SEC; default: 60s]" in words
    assert "--steam / --no-steam Use steam. [env var: ZMQRT_STEAM; default: true]" in words
    assert "--config FILE Settings file; else ZMQRT_CONFIG" in words
    assert "See the cookbook." in words
    assert "--old" not in words


def test_version_names_the_protocol_and_libzmq() -> None:
    """One line for a bug report."""
    result = run("--version")

    assert result.exit_code == 0
    assert result.output.startswith("zmqrt ")
    assert "ZRT/1, libzmq 4." in result.output


def test_flags_win_over_the_environment_and_lists_may_be_repeated() -> None:
    """Units, repetition and commas, and the negative of a switch."""
    result = run(
        "--bake", "2m", "--bread", "rye,spelt", "--bread", "oat", "--no-steam", BAKE_SEC="1", LOG_LEVEL="ERROR"
    )

    assert result.output == "120.0 ('rye', 'spelt', 'oat') False error\n"


def test_a_bad_flag_is_a_usage_error() -> None:
    """Exit code 2, and what was expected."""
    result = run("--bake", "soon")

    assert result.exit_code == 2
    assert "'--bake': 'soon': expected a duration such as 10s, 250ms or 2m" in result.output


def test_a_bad_variable_is_a_bad_configuration() -> None:
    """Exit code 78, in one line."""
    result = run(ZMQRT_BAKE="soon")

    assert result.exit_code == 78
    assert result.output.startswith("error: setting bake = 'soon' (environment ZMQRT_BAKE): expected a duration")
    assert result.output.count("\n") == 1


def test_a_bare_variable_of_another_program_is_a_warning() -> None:
    """The program runs as if it were not there; in a log of JSON the warning is a line of JSON."""
    result = run(BAKE_SEC="soon")
    assert (result.exit_code, result.stdout) == (0, run().stdout)
    assert result.stderr.startswith("warning: BAKE_SEC in the environment is ignored: 'soon' cannot be the bake")

    logged = json.loads(run("--log-format", "json", BAKE_SEC="soon").stderr)
    assert (logged["level"], logged["role"]) == ("warning", "bakery")
    assert logged["message"].startswith("BAKE_SEC in the environment is ignored")


def test_a_file_of_the_working_directory_that_counts_is_named(empty_house: Path) -> None:
    """Once, on standard error."""
    (empty_house / ".env").write_text("ZMQRT_BAKE=7\n", encoding="utf-8")
    result = run()

    assert result.stdout.startswith("7.0 ")
    assert result.stderr == f"settings: read from {empty_house}/.env: bake\n"


def test_a_named_file_is_read(empty_house: Path) -> None:
    """--config wins over the file in the working directory; one that is not there is a usage error."""
    (empty_house / "zmqrt.toml").write_text("[bakery]\nbake = 1\n", encoding="utf-8")
    (empty_house / "mine.toml").write_text("[bakery]\nbake = '3s'\n", encoding="utf-8")

    assert run("--config", "mine.toml").output.startswith("3.0 ")
    assert run("--config", "nowhere.toml").exit_code == 2


def test_an_error_of_ours_ends_the_program_with_its_own_code() -> None:
    """69 for a broker that nobody reaches, and the sentence on standard error."""
    result = run("--bread", "stone")

    assert result.exit_code == 69
    assert result.stderr == "error: nobody answers at tcp://127.0.0.1:1; start zmqrt-broker\n"


def test_a_traceback_is_shown_to_those_who_ask() -> None:
    """ZMQRT_DEBUG is no setting, and no unknown variable either."""
    result = run("--bread", "stone", ZMQRT_DEBUG="1")

    assert result.exit_code == 69
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: nobody answers at tcp://127.0.0.1:1; start zmqrt-broker\n")
    for no in ("0", "false", '"off"', " "):
        assert "Traceback" not in run("--bread", "stone", ZMQRT_DEBUG=no).stderr


def test_a_deprecated_setting_warns_on_standard_error() -> None:
    """The program runs all the same."""
    result = run(OLD_OVEN="1")

    assert result.exit_code == 0
    assert result.stderr == "warning: setting old (environment OLD_OVEN) has no effect any more: buy a new one\n"


def test_a_subcommand_takes_the_flags_beside_its_own() -> None:
    """Settings first, then the function's own parameters."""
    result = run("sell", "--bread", "rye", "--count", "3", "Ada", program=shop)

    assert result.output == "3 rye for Ada\n"


@pytest.mark.parametrize(
    ("words", "environ", "said"),
    [
        ([], {}, ": False"),
        (["--bread", "rye"], {}, "rye: True"),
        ([], {"ZMQRT_BREAD": "rye"}, "rye: True"),
    ],
)
def test_a_command_may_ask_whether_somebody_named_a_setting(
    words: list[str], environ: dict[str, str], said: str
) -> None:
    """What is only the default may be treated with more patience."""
    assert run("ask", *words, program=shop, **environ).output.strip() == said


def test_a_default_that_somebody_names_is_named() -> None:
    """It is the place that counts, not the value."""
    (Path.cwd() / "zmqrt.toml").write_text("[bakery]\nbread = []\n", encoding="utf-8")

    assert run("ask", program=shop).stdout.strip() == ": True"
