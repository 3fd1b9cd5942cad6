"""What chat remembers."""

import pytest

from zmqrt.client.cli.cmd_chat import ChatCommand, Conversation, command_of
from zmqrt.protocol.tasks import ToolCall


def said(conversation: Conversation) -> list[tuple[str, str]]:
    """Return role and words of each turn."""
    return [(turn.role, turn.content) for turn in conversation.turns]


def test_every_turn_is_sent_along_with_the_next() -> None:
    """The system's words come first, always."""
    conversation = Conversation("Be brief.")
    conversation.ask("Hi")
    conversation.answered("Hello!")
    sent = conversation.ask("Who are you?")

    assert [(turn.role, turn.content) for turn in sent] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Who are you?"),
    ]


def test_an_answer_that_was_stopped_counts_as_far_as_it_went() -> None:
    """The model should know what the person has read."""
    conversation = Conversation()
    conversation.ask("Count")
    conversation.answered("1 2 3")

    assert said(conversation) == [("user", "Count"), ("assistant", "1 2 3")]


def test_a_question_without_an_answer_is_taken_back() -> None:
    """Two user turns in a row break most chat templates."""
    conversation = Conversation()
    conversation.ask("Hi")
    conversation.answered("")

    assert said(conversation) == []


def test_reset_forgets_but_for_the_system() -> None:
    """It was given on the command line."""
    conversation = Conversation("Be brief.")
    conversation.ask("Hi")
    conversation.answered("Hello!")
    conversation.reset()

    assert [turn.content for turn in conversation.ask("Again")] == ["Be brief.", "Again"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/exit", ChatCommand.EXIT),
        ("/quit", ChatCommand.EXIT),
        (" /reset ", ChatCommand.RESET),
        ("/help", ChatCommand.HELP),
        ("hi /exit", None),
        ("", None),
    ],
)
def test_a_line_that_begins_with_a_slash_is_an_order(line: str, expected: ChatCommand | None) -> None:
    """Anything else is for the model."""
    assert command_of(line) is expected


def test_an_unknown_order_is_not_sent_to_the_model() -> None:
    """It was a slip."""
    with pytest.raises(ValueError, match=r"there is no /rest; /reset forgets"):
        command_of("/rest")


def test_what_a_call_came_to_is_a_turn_behind_it() -> None:
    """And a question of which nothing came takes them all back."""
    call = ToolCall(id="a", name="weather", arguments="{}")
    conversation = Conversation()
    conversation.ask("Hi")
    conversation.answered("Hello!")
    conversation.ask("Rain?")
    conversation.answered("", [call])
    sent = conversation.returned(call, "dry")

    assert [turn.role for turn in sent] == ["user", "assistant", "user", "assistant", "tool"]
    assert (sent[3].tool_calls, sent[4].tool_call_id, sent[4].name) == ([call], "a", "weather")
    conversation.answered("")
    assert said(conversation) == [("user", "Hi"), ("assistant", "Hello!")]
