"""The command itself: what it lists, and how it ends."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from zmqrt.client.cli import main as program
from zmqrt.client.cli.main import COMMANDS, cli, main
from zmqrt.protocol.errors import ConnectError


@pytest.fixture(autouse=True)
def empty_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those that a test makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_in_the_list_is_that_of_the_command(name: str) -> None:
    """The list does not import what it lists, so it could fall behind."""
    found = cli.get_command(click.Context(cli), name)

    assert found is not None
    assert found.help == COMMANDS[name]


def test_help_imports_no_subcommand() -> None:
    """And nothing slow: neither rich nor ZeroMQ nor an HTTP stack nor torch."""
    code = (
        "import sys; from zmqrt.client.cli.main import main; main(['--help']);"
        "print(sorted(n for n in sys.modules if '.cmd_' in n or n in ('asyncio', 'rich', 'starlette', 'torch', 'zmq')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.splitlines()[-1] == "[]"


def test_version_names_what_matters_in_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours, the protocol's and the library's."""
    assert main(["--version"]) == 0
    assert "ZRT/1, libzmq 4." in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nonsense"], ["infer", "--no-such-flag"], ["infer", "--max-tokens", "x", "hi"]])
def test_a_wrong_command_line_is_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With click's own words."""
    assert main(words) == 2
    assert "Error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConnectError("nobody listens"), 69, "error: nobody listens\n"),
        (ConnectError("the key is not listed", not_authorised=True), 77, "error: the key is not listed\n"),
        (FileNotFoundError(2, "No such file", "x.toml"), 1, "error: [Errno 2] No such file: 'x.toml'\n"),
        (KeyError("x"), 1, "error: unexpected KeyError: 'x' (ZMQRT_DEBUG=1 shows where; please report it)\n"),
    ],
)
def test_an_error_is_one_sentence_and_a_code(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a traceback."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(program.cli, "main", fail)

    assert main([]) == code
    assert capsys.readouterr().err == words


def test_a_traceback_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """ZMQRT_DEBUG=1."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(program.cli, "main", fail)
    monkeypatch.setenv("ZMQRT_DEBUG", "1")

    assert main([]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("ZMQRT_DEBUG", "0")
    assert main([]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell would have it."""

    def interrupt(*_: object, **__: object) -> None:
        raise click.Abort

    monkeypatch.setattr(program.cli, "main", interrupt)

    assert main([]) == 130


def _texts(command: click.Command, words: tuple[str, ...]) -> Iterator[list[str]]:
    """List a command line for each place where a command takes text, with bytes in it that are no UTF-8."""
    for inner_name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        yield from _texts(inner, (*words, inner_name))
    for one in command.params:
        is_path = isinstance(one.type, click.Path | click.File) or one.metavar in ("PATH", "DIR")
        is_for_others = one.type is click.UNPROCESSED or one.name == "api_key"
        if is_path or is_for_others or getattr(one, "is_flag", False):
            continue  # paths and keys may hold any byte, and another program judges its arguments itself
        yield [*words, BYTE] if isinstance(one, click.Argument) else [*words, one.opts[-1], BYTE]


BYTE = "caf\udce9"
"""What `$'caf\\xe9'` becomes in a UTF-8 locale."""
NOT_UNICODE = [
    line
    for name in COMMANDS
    if (found := cli.get_command(click.Context(cli), name)) is not None
    for line in _texts(found, (name,))
]


@pytest.mark.parametrize("words", NOT_UNICODE, ids=lambda words: " ".join(words[:-1]))
def test_bytes_that_are_no_text_are_refused_in_a_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """By every subcommand, for every argument and flag that takes text: exit 2, and no traceback."""
    assert main(words) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in said.err
    assert "report it" not in said.err


def test_bytes_that_are_no_text_are_refused_by_the_real_program() -> None:
    """With what a shell really hands over."""
    for words in ([b"infer"], [b"explain"], [b"submit", b"--prompt"], [b"models", b"--default-model"]):
        command = [sys.executable.encode(), b"-m", b"zmqrt.client.cli", *words, b"caf\xe9"]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)

        assert (result.returncode, result.stdout) == (2, b"")
        assert result.stderr.count(b"Error: ") == 1
        assert b"Traceback" not in result.stderr


def test_text_in_utf_8_is_text_in_any_locale() -> None:
    """Where the locale has no such letters Python hands over bytes; it is the broker that is missing, and no letter."""
    words = ("-m", "zmqrt.client.cli", "infer", "--broker", "tcp://127.0.0.1:1", "modèle")
    command = [sys.executable.encode(), *(word.encode() for word in words)]
    surroundings = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    result = subprocess.run(
        command, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
    )

    assert (result.returncode, b"nobody listens" in result.stderr) == (69, True)
