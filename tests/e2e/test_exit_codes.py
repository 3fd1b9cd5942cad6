"""How commands end: the code for scripts, the sentence for people. Never a traceback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.cli import Running, zmqrt
from support.process_engines import ENV
from support.stack import Stack, eventually, running, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that is ours and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """A broker and a mock node."""
    with running() as stack:
        yield stack


def timed(*words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command; return it and how long it took beyond what starting any program takes on this busy machine."""
    begun = time.monotonic()
    zmqrt("models", "--help")
    started = time.monotonic()
    result = zmqrt(*words)
    return result, time.monotonic() - started - (started - begun)


def check(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    """Compare code and sentence; the sentence is all there is."""
    assert result.returncode == code, result.stderr
    assert re.search(words, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_nobody_there_is_69_within_five_seconds(silent_port: int) -> None:
    """Whichever command, and the sentence says what to start."""
    sentence = rf"nobody listens at tcp://127\.0\.0\.1:{silent_port}.*zmqrt up"
    result, took_s = timed("infer", "hi", "--broker", f"tcp://127.0.0.1:{silent_port}")
    check(result, 69, sentence)
    assert took_s < 5

    others = [["submit", "--prompt", "hi"], ["status"], ["models"], ["chat"], ["drain", "node-0"], ["top", "--once"]]
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(zmqrt, *words, "--broker", f"tcp://127.0.0.1:{silent_port}") for words in others]
        for each in asked:
            check(each.result(), 69, sentence)


def test_an_answer_is_0_and_alone_on_standard_output(fleet: Stack) -> None:
    """So that it can be piped on; the prompt may come from a pipe too."""
    by_argument = zmqrt("infer", "--broker", fleet.clients, "--temperature", "0", "-n", "5", "héllo")
    by_pipe = zmqrt("infer", "--broker", fleet.clients, "--temperature", "0", "-n", "5", "-", given="héllo\n")

    assert (by_argument.returncode, by_argument.stderr) == (0, "")
    assert by_argument.stdout == by_pipe.stdout
    assert by_argument.stdout.strip()


def test_streamed_or_whole_it_is_the_same_text(fleet: Stack) -> None:
    """With a seed."""
    words = ("infer", "--broker", fleet.clients, "--seed", "3", "-n", "12", "hi")

    assert zmqrt(*words, "--stream").stdout == zmqrt(*words, "--no-stream").stdout


def test_chat_answers_each_line(fleet: Stack) -> None:
    """From a pipe too; orders are obeyed and not sent."""
    result = zmqrt(
        "chat", "--broker", fleet.clients, "-n", "4", "-t", "0", given="hi\n/reset\nhi\n/nonsense\n/exit\nno\n"
    )
    answers = result.stdout.splitlines()

    assert result.returncode == 0
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert "forgotten" in result.stderr
    assert "there is no /nonsense" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--temperature", "3"], "temperature"),
        (["--model", "nowhere"], "nowhere"),
        (["--top-p", "0"], "top_p"),
    ],
)
def test_a_request_that_cannot_be_served_is_2(fleet: Stack, words: list[str], sentence: str) -> None:
    """The field, or the model, is named."""
    check(zmqrt("infer", "--broker", fleet.clients, *words, "hi"), 2, sentence)


def test_out_of_time_is_75(fleet: Stack) -> None:
    """Trying again may help."""
    words = ("--timeout", "300ms", "--max-tokens", "3000", "--ignore-eos", "--no-stream")
    with running(worker=("--engine-opt", "step_ms=3000")) as slow:  # a step is progress, but comes too late
        check(zmqrt("infer", "--broker", slow.clients, *words, "hi"), 75, "time")


def test_leaving_the_machine_without_keys_is_78() -> None:
    """For a client, a broker and a bridge."""
    check(zmqrt("infer", "--broker", "tcp://192.0.2.1:7555", "hi"), 78, "no keys are set")
    for role, words in (("broker", ["--clients", "tcp://0.0.0.0:0"]), ("bridge_http", ["--host", "0.0.0.0"])):
        command = [sys.executable, "-m", f"zmqrt.{role}", *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        check(result, 78, "reachable from other machines")


@pytest.mark.slow
def test_a_decoder_that_fails_its_self_test_is_served_by_another_and_everybody_is_told_why() -> None:
    """The node serves, by transformers' modules: the reason stands in the status, its JSON, and the monitor."""
    why = "the path 'fused' left out: the self-test is off by"
    with Stack() as stack:
        stack.broker()
        engine = "support.process_engines:off_at_first"
        node = stack.worker(*("--model", "tiny-random", "--device", "cpu"), engine=engine, node_id="n", env=ENV)
        with stack.client() as client:
            answer = client.infer("hello", raw=True, max_tokens=4, ignore_eos=True)
            (device,) = client.status().nodes[0].devices
        texts = [
            zmqrt(*words, "--broker", stack.clients) for words in (("status",), ("status", "--json"), ("top", "--once"))
        ]

        assert answer.usage.completion_tokens == 4
        assert device.fallback.startswith(why)
        for shown in texts:
            assert why in " ".join(shown.stdout.split()), shown.stdout + shown.stderr
        assert "it is loaded anew without the path 'fused'" in node.output()


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("hungry", r"OutOfMemoryError: there is too little memory to load toy \(it asked for 131072\.0 GiB\)"),
        ("greedy", r"killed by SIGKILL while it loaded, perhaps by the kernel for want of memory"),
    ],
)
def test_a_model_without_room_is_1_after_three_tries(engine: str, words: str) -> None:
    """The node waits between them, since others may free memory; then the device, the reason and what to do."""
    with Stack() as stack:
        stack.broker()
        factory = ("--engine", f"support.toy_engines:{engine}", "--device", "cpu", "--served-model-name", "toy")
        node = start("worker", "--broker", stack.workers, *factory, env=ENV, wait=False)
        stack.processes.append(node)

        assert node.wait() == 1
        eventually(lambda: "leaving: " in node.output(), what="the last words")
        said = [str(json.loads(line).get("message")) for line in node.lines if line.startswith("{")]

    ends = [line for line in said if "the engine process ended" in line]
    assert len(ends) == 3
    assert all(re.match(rf"cpu: the engine process ended: {words}", line) for line in ends)
    (last,) = [line for line in said if line.startswith("leaving")]
    assert re.match(rf"leaving: no device can serve; cpu: {words}.*given up after 3 tries", last)
    for remedy in ("a smaller model", "--dtype", "--max-model-len", "--slots", "--engine-opt kv_mib="):
        assert remedy in last


def test_no_key_where_keys_are_asked_for_is_77(tmp_path: Path) -> None:
    """Likewise a key of another fleet."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert zmqrt("keygen", str(ours)).returncode == zmqrt("keygen", str(theirs)).returncode == 0
    with Stack() as stack:
        stack.broker("--keys", str(ours))

        assert zmqrt("status", "--broker", stack.clients, "--keys", str(ours)).returncode == 0
        check(zmqrt("infer", "--broker", stack.clients, "hi"), 77, "key")
        check(zmqrt("infer", "--broker", stack.clients, "--keys", str(theirs), "hi"), 77, "key")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupted_is_130(fleet: Stack) -> None:
    """And the request is given up: its slot is free again."""
    words = ("--stream", "--max-tokens", "100000", "--ignore-eos", "--timeout", "1h")
    with fleet.client() as client, Running("infer", "--broker", fleet.clients, *words, "hi") as asking:
        eventually(lambda: client.status().running == 1, what="a running request")
        os.kill(asking.popen.pid, signal.SIGINT)

        assert asking.wait() == 130
        assert "Traceback" not in "\n".join(asking.lines)
        assert eventually(lambda: client.status().running == 0, what="a free slot")
