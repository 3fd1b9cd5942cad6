"""From flags to a call."""

import click
from click.testing import CliRunner

from zmqrt.client.cli.generation import SamplingFlags, messages, sampling_options
from zmqrt.protocol.tasks import ChatMessage


def test_only_what_was_said_is_asked_for() -> None:
    """The rest is the worker's to choose."""
    assert SamplingFlags().options() == {}


def test_zero_is_said() -> None:
    """A temperature of 0 asks for the likeliest answer; a seed of 0 is a seed."""
    said = SamplingFlags(temperature=0.0, seed=0, top_k=0, stop=("x",), ignore_eos=True).options()

    assert said == {"temperature": 0.0, "seed": 0, "top_k": 0, "stop": ("x",), "ignore_eos": True}


def test_what_the_model_is_told_beforehand_comes_first() -> None:
    """As the system's turn."""
    assert messages("Be brief.", ChatMessage(role="user", content="Hi")) == [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="Hi"),
    ]


def test_values_for_the_chat_template_are_json_or_text() -> None:
    """One flag for each."""

    @click.command()
    @sampling_options
    def command(flags: SamplingFlags) -> None:
        click.echo(repr(flags.options()))

    given = ["--template", "enable_thinking=false", "--template", "effort=high", "--template", "a=[1]"]
    said = CliRunner().invoke(command, given)
    wrong = CliRunner().invoke(command, ["--template", "loud"])

    assert "{'rendering': {'kwargs': {'enable_thinking': False, 'effort': 'high', 'a': [1]}}}" in said.output
    assert (wrong.exit_code, "NAME=VALUE is meant" in wrong.output) == (2, True)


def test_a_priority_is_a_class_or_a_number() -> None:
    """Any other word is refused, and the classes are named."""

    @click.command()
    @sampling_options
    def command(flags: SamplingFlags) -> None:
        click.echo(repr(flags.options()))

    said = [CliRunner().invoke(command, ["--priority", given]).output.strip() for given in ("bulk", "-7", "0")]
    wrong = CliRunner().invoke(command, ["--priority", "urgent"])

    assert said == ["{'priority': 'bulk'}", "{'priority': -7}", "{'priority': 0}"]
    assert (wrong.exit_code, "interactive, default, bulk, or a number" in wrong.output) == (2, True)
