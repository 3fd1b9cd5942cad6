"""From the file of tools to a call."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from zmqrt.client.cli.main import cli
from zmqrt.client.cli.tool_flags import callable_tools, tool_fields

PLAIN = {"name": "weather", "parameters": {"type": "object"}}
NESTED = {"type": "function", "function": PLAIN}


def asked(tmp_path: Path, text: str, *words: str) -> Result:
    """Run `zmqrt infer` with a file of tools; it does not get as far as a broker."""
    file = tmp_path / "tools.json"
    file.write_text(text, encoding="utf-8")
    return CliRunner().invoke(cli, ["infer", "--tools", str(file), *words, "hi"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "it is no JSON"),
        ("[]", "a JSON list of objects with a name is meant"),
        (json.dumps([PLAIN, {"description": "x"}]), "a JSON list of objects with a name is meant"),
        (json.dumps([1]), "a JSON list of objects with a name is meant"),
    ],
)
def test_a_file_without_tools_is_named(tmp_path: Path, text: str, words: str) -> None:
    """Before anything is asked."""
    result = asked(tmp_path, text)

    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With what the system says."""
    result = CliRunner().invoke(cli, ["infer", "--tools", str(tmp_path / "none.json"), "hi"])

    assert (result.exit_code, "No such file" in result.output) == (2, True)


def test_tools_have_no_place_in_raw_text(tmp_path: Path) -> None:
    """Nobody would tell the model of them."""
    result = asked(tmp_path, json.dumps([PLAIN]), "--raw")

    assert (result.exit_code, "--raw" in result.output, "--tools" in result.output) == (2, True, True)


@pytest.mark.parametrize(
    ("choice", "said"),
    [(None, {}), ("required", {"tool_choice": "required"}), ("weather", {"tool_choice": {"name": "weather"}})],
)
def test_a_choice_is_a_word_or_the_name_of_a_tool(choice: str | None, said: dict[str, Any]) -> None:
    """In OpenAI's shape or plain."""
    assert tool_fields([NESTED], choice) == {"tools": [NESTED], **said}
    assert set(callable_tools([NESTED], choice)) == set(callable_tools([PLAIN], choice)) == {"weather"}
    assert callable_tools([PLAIN], "none") == {}


def test_a_choice_without_tools_says_nothing() -> None:
    """So it is refused."""
    assert tool_fields([], None) == {}
    with pytest.raises(click.UsageError, match="--tools FILE"):
        tool_fields([], "required")


@pytest.mark.parametrize("command", ["infer", "chat"])
def test_help_shows_what_stands_in_the_file(command: str) -> None:
    """An example says more than a grammar."""
    said = CliRunner().invoke(cli, [command, "--help"]).output

    assert '[{"name": "weather", "description": "Tells the weather.",' in said
    assert "standard error" in " ".join(said.split())
