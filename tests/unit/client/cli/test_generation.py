"""From flags to a call."""

from zmqrt.client.cli.generation import SamplingFlags, messages
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
