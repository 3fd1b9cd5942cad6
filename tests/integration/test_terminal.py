"""What a terminal is shown of others' words moves nothing, and whoever stops reading is no failure."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from support.tiny_broker import TinyBroker, echo, service
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="terminals are another thing"),
]

EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\x9d0;t\x9c\x08\x7f\u202eevil\u2066\u2028x\x00"
"""Fill the clipboard, clear the screen, in C0 and C1; DEL, backspace, an override of direction, NUL."""
ORDERS = {*"\x1b\x07\x9b\x9d\x9c\x08\x7f\u202e\u2066\u2028\x00"}
GOOD = "Grüße, 日本 👩‍👩‍👧 می‌خواهم\n\tsecond line"
"""Letters of any script, and the joiners that some need."""


def answering(request: m.Request) -> list[m.ToClient]:
    """Repeat the prompt; refuse what asks for it, in hostile words."""
    if b"refuse" in request.body:
        return [m.Error(request.rid, 400, "bad_request", False, 0, f"no: {EVIL}\nerror: forged")]
    task = tasks.decode_task(request.body)
    if isinstance(task, tasks.Generate) and task.messages is not None:
        body = tasks.encode(tasks.Generate(prompt=task.messages[-1].content))
        return echo(msgspec.structs.replace(request, body=body))
    return echo(request)


@pytest.fixture(scope="module")
def broker() -> Iterator[TinyBroker]:
    """One broker for all of them."""
    hostile = service("toy")
    with TinyBroker(answering, services=[hostile]) as made:
        yield made


def command(*words: str) -> list[str]:
    """Build the command line."""
    return [sys.executable, "-m", "zmqrt.client.cli", *words]


def on_terminal(*words: str, given: str = "") -> str:
    """Run a command with a terminal of its own, and return everything that this was shown."""
    import pty

    own, its = pty.openpty()
    with subprocess.Popen(command(*words), stdin=subprocess.PIPE, stdout=its, stderr=its) as process:
        os.close(its)
        assert process.stdin is not None
        process.stdin.write(given.encode())
        process.stdin.close()
        shown = b""
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while piece := os.read(own, 65536):
                shown += piece
        process.wait(30)
    os.close(own)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
def test_an_answer_on_a_terminal_moves_nothing(broker: TinyBroker, flag: str) -> None:
    """Streamed and whole; letters of every script are left alone."""
    shown = on_terminal("infer", "--broker", broker.endpoint, "-m", "toy", flag, "-", given=f"{GOOD} {EVIL} end")

    assert GOOD in shown
    assert "end" in shown
    assert not ORDERS & set(shown)


def test_a_conversation_and_a_submission_move_nothing_either(broker: TinyBroker) -> None:
    """Each prints answers in a way of its own."""
    line = EVIL.replace("\u2028", " ").replace("\x00", " ")
    for words, given in (
        (("chat", "--broker", broker.endpoint, "-m", "toy"), f"tell {line}\n"),
        (("submit", "--broker", broker.endpoint, "-m", "toy", "--prompt", "-"), f"tell {EVIL}"),
    ):
        shown = on_terminal(*words, given=given)

        assert "tell" in shown
        assert not ORDERS & set(re.sub(r"\x1b\[[0-9;]*m", "", shown))  # our own greeting is dim


@pytest.mark.parametrize(
    "words", [("infer", "refuse"), ("infer", "--json", "refuse"), ("submit", "--prompt", "refuse")], ids=" ".join
)
def test_errors_of_others_move_nothing_and_forge_no_line(broker: TinyBroker, words: tuple[str, ...]) -> None:
    """The second line of an error stands further in, so that it cannot be taken for another one."""
    shown = on_terminal(words[0], "--broker", broker.endpoint, "-m", "toy", *words[1:])

    assert "error: no: " in shown
    assert "\nerror: forged" not in shown
    assert "    error: forged" in shown
    assert not ORDERS & set(shown)


def test_json_is_the_same_data_without_a_character_to_obey(broker: TinyBroker) -> None:
    """On a terminal and in a file alike."""
    words = ("infer", "--broker", broker.endpoint, "-m", "toy", "--json", "-")
    shown = on_terminal(*words, given=f"{GOOD}{EVIL}")
    piped = subprocess.run(command(*words), input=f"{GOOD}{EVIL}".encode(), capture_output=True, check=True).stdout

    assert not ORDERS & set(shown)
    assert json.loads(shown)["text"] == json.loads(piped)["text"] == f"{GOOD}{EVIL}"
    assert GOOD.split("\n", maxsplit=1)[0] in shown


def test_an_answer_in_a_file_is_left_as_it_is(broker: TinyBroker) -> None:
    """Byte for byte: it moves nothing there, and somebody may need it so."""
    words = command("infer", "--broker", broker.endpoint, "-m", "toy", "-")
    piped = subprocess.run(words, input=f"{GOOD} {EVIL}".encode(), capture_output=True, check=True)

    assert piped.stdout.decode() == f"{GOOD} {EVIL}\n"


READ_BY_NOBODY = [
    ("--help",),
    ("--version",),
    ("infer", "--help"),
    ("infer", "BROKER", "a b"),
    ("infer", "BROKER", "--stream", "a b"),
    ("infer", "BROKER", "--json", "a b"),
    ("submit", "BROKER", "--prompt", "a b"),
    ("chat", "BROKER"),
    ("models", "BROKER"),
    ("models", "BROKER", "--json"),
    ("models", "list-known"),
    ("status", "BROKER"),
    ("status", "BROKER", "--json"),
    ("top", "BROKER", "--json"),
    ("top", "BROKER", "--once"),
    ("config", "show"),
    ("config", "show", "--json"),
    ("config", "init", "-"),
    ("completion", "bash"),
    ("doctor", "BROKER", "--no-worker"),
    ("doctor", "BROKER", "--no-worker", "--json"),
]

COMMON = [("--help",), ("status", "BROKER", "--json"), ("config", "show")]
"""Those that are piped most; the others are slow together."""


def run_unread(words: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a program whose output nobody reads, as behind `| head` once that has ended."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(words, input=b"hi\nho\n", stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=" ".join(words), marks=[] if words in COMMON else pytest.mark.slow)
        for words in READ_BY_NOBODY
    ],
)
def test_a_reader_who_leaves_is_no_failure(broker: TinyBroker, words: tuple[str, ...]) -> None:
    """Every command that prints ends as if SIGPIPE had ended it, without a word."""
    there = [one for word in words for one in (("--broker", broker.endpoint) if word == "BROKER" else (word,))]
    there += ["-m", "toy"] if words[0] in ("infer", "submit", "chat") and "--help" not in words else []

    ended = run_unread(command(*there))

    assert ended.returncode == 141, ended.stderr.decode()
    assert ended.stderr == b"" or ended.stderr.startswith(b"request ")


@pytest.mark.parametrize("role", ["broker", "worker", "bridge_http"])
def test_a_reader_of_help_may_leave_a_role_too(role: str) -> None:
    """Their programs are of their own."""
    ended = run_unread([sys.executable, "-m", f"zmqrt.{role}", "--help"])

    assert (ended.returncode, ended.stderr) == (141, b"")
