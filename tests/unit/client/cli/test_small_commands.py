"""Commands that need no fleet: keygen, config, completion; and what the others refuse before they connect."""

import json
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner, Result

from zmqrt.client.cli import cmd_submit
from zmqrt.client.cli.main import cli
from zmqrt.client.response import Result as Generated
from zmqrt.protocol.authorized_keys import load_allowed
from zmqrt.protocol.keys import load_peer, load_server
from zmqrt.protocol.tasks import Usage


@pytest.fixture(autouse=True)
def empty_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings but those that a test makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def run(*words: str, given: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, words, input=given)


def test_keygen_makes_keys_that_fit_together_and_says_what_next(empty_house: Path) -> None:
    """Every role finds its part, and the next commands can be pasted."""
    result = run("keygen", "keys")
    keys = empty_house / "keys"

    assert result.exit_code == 0
    assert load_peer(keys, "worker").server_public == load_server(keys).public
    assert list(load_allowed(keys, "clients")) == [
        load_peer(keys, "client").own.public,
        load_peer(keys, "client", as_admin=True).own.public,
    ]
    assert "zmqrt-worker --keys keys --broker tcp://HOST:7556" in result.output
    assert load_server(keys).secret.decode() not in result.output


def test_config_init_writes_a_file_that_changes_nothing(empty_house: Path) -> None:
    """And does not overwrite one."""
    assert run("config", "init").exit_code == 0
    assert "[bridge]" in (empty_house / "zmqrt.toml").read_text(encoding="utf-8")
    assert run("config", "show").exit_code == 0
    assert isinstance(run("config", "init").exception, Exception)
    assert run("config", "init", "--force").exit_code == 0


def test_config_show_tells_where_a_value_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a historic name; a secret is never shown."""
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("API_KEYS", "acme:s3cret")
    shown = json.loads(run("config", "show", "bridge", "--json").output)["bridge"]
    found = {one["name"]: (one["value"], one["origin"]) for one in shown}

    assert found["port"] == ("8123", "environment PORT")
    assert found["api_keys"] == ("****", "environment API_KEYS")
    assert found["host"] == ("127.0.0.1", "default")


def test_config_show_refuses_a_role_that_is_not_there() -> None:
    """And names those that are."""
    result = run("config", "show", "gateway")

    assert result.exit_code == 2
    assert "bridge" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_prints_a_script_and_where_it_goes(shell: str) -> None:
    """For each shell."""
    result = run("completion", shell)

    assert result.exit_code == 0
    assert result.output.startswith("# ")
    assert "_ZMQRT_COMPLETE" in result.output


def test_without_a_prompt_there_is_nothing_to_ask() -> None:
    """An empty pipe is an empty prompt, which is one; a system prompt has no place in raw text."""
    assert run("infer", "--raw", "--system", "x", "hi").exit_code == 2


def test_submit_over_http_refuses_what_v1_does_not_have() -> None:
    """Before anything is sent."""
    result = run("submit", "--url", "http://127.0.0.1:1", "--prompt", "hi", "--top-k", "3", "--seed", "1")

    assert result.exit_code == 2
    assert "--top-k, --seed: POST /infer has no such field" in result.output


@pytest.mark.parametrize("flags", [[], ["--url", "http://127.0.0.1:1"]])
def test_submit_prints_words_alone(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Natively and over HTTP: what the model thought stands on standard error, without its marks; --json has it all."""
    text = "<think>Hm.</think>\n\nYes."
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    result = Generated(
        text=text, token_ids=[], finish_reason="stop", usage=usage, seed=0, model="m", revision="r", request_id="q"
    )
    client, library = Mock(), Mock()
    client.submit.return_value = Mock(request_id="q", result=lambda: result)
    library.from_settings.return_value = nullcontext(client)
    monkeypatch.setattr(cmd_submit, "Client", library)
    monkeypatch.setattr(cmd_submit, "post", Mock(return_value={"request_id": "q", "text": text}))
    ran, as_json = run("submit", *flags, "--prompt", "hi"), run("submit", *flags, "--prompt", "hi", "--json")

    assert (ran.stdout, ran.stderr) == ("Yes.\n", "request q\nHm.\n")
    assert json.loads(as_json.stdout)["text"] == text
    assert flags or json.loads(as_json.stdout)["reasoning"] == "Hm."


def test_up_refuses_two_engines() -> None:
    """--mock names one already."""
    assert run("up", "--mock", "--engine", "transformers").exit_code == 2
