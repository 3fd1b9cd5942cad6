"""`zmqrt embed` against a broker that a test can bend: requests that are too large, lines at fault, and its end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from support.cli import Running
from support.stack import eventually
from support.tiny_broker import TinyBroker, echo, judged, refuse, service
from zmqrt.client import calls
from zmqrt.client.cli.main import main
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks

pytestmark = pytest.mark.integration
EMBEDDER = service("vectors", "embed")


def embed(broker: TinyBroker, file: Path, *words: str) -> int:
    """Run the command in this process."""
    return main(["embed", str(file), "--broker", broker.endpoint, *words])


def test_lines_that_are_too_many_bytes_for_one_request_go_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of them fits, so each has its vector, in its place."""
    monkeypatch.setattr(calls, "MAX_FRAME_BYTES", 1000)
    file = tmp_path / "texts"
    file.write_text("\n".join(str(at) * 400 for at in range(9)), encoding="utf-8")
    with TinyBroker(services=[EMBEDDER]) as broker:
        code = embed(broker, file, "--batch", "9")

    assert code == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == [str(at) * 400 for at in range(9)]


def test_a_line_that_alone_is_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it is sent anywhere, and so are no others of its request."""
    monkeypatch.setattr(calls, "MAX_FRAME_BYTES", 1000)
    file = tmp_path / "texts"
    file.write_text(f"a\nb\n{'c' * 1000}\nd\n", encoding="utf-8")
    with TinyBroker(services=[EMBEDDER]) as broker:
        code = embed(broker, file)

    assert code != 0
    assert "error: line 3: the request has " in capsys.readouterr().err


def test_a_line_that_a_node_refuses_is_found_with_few_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By halves: not one request for each of its neighbours."""

    def answer(request: m.Request) -> list[m.ToClient]:
        task = tasks.decode_task(request.body)
        assert isinstance(task, tasks.Embed)
        return [refuse(request, 400, "bad_request")] if "wrong" in task.input else [judged(request)]

    file, out = tmp_path / "texts", tmp_path / "out.npy"
    file.write_text("\n".join("wrong" if at == 100 else "right" for at in range(256)), encoding="utf-8")
    with TinyBroker(answer, services=[EMBEDDER]) as broker:
        code = embed(broker, file, "--batch", "256", "-o", str(out))
        asked = sum(isinstance(message, m.Request) for message in broker.received)

    assert code != 0
    assert "error: line 101: refused: bad_request" in capsys.readouterr().err
    assert asked <= 1 + 2 * 8
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_no_half_file_is_left_by_one_that_is_told_to_end(tmp_path: Path, name: str) -> None:
    """Whoever tells it: a terminal, an init system, a closed window."""
    file, out = tmp_path / "texts", tmp_path / "out.npy"
    file.write_text("\n".join(str(at) for at in range(100)), encoding="utf-8")
    asked: list[m.Request] = []

    def answer(request: m.Request) -> list[m.ToClient]:
        asked.append(request)
        return echo(request) if len(asked) == 1 else []

    with TinyBroker(answer, services=[EMBEDDER]) as broker:
        words = ("embed", str(file), "-o", str(out), "--batch", "4", "--broker", broker.endpoint)
        with Running(*words) as command:
            eventually(lambda: len(asked) > 16, what="a first answer, and more that are asked")
            command.popen.send_signal(getattr(signal, name))
            code = command.wait()

    assert code == 130
    assert list(tmp_path.iterdir()) == [file]
