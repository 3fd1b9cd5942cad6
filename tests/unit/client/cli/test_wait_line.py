"""The line that says where a request stands, on a terminal's standard error."""

from __future__ import annotations

import sys

import pytest

from zmqrt.client.cli.wait_line import WaitLine
from zmqrt.client.queue_place import QueuePlace


def test_a_terminal_shows_the_place_until_the_answer_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, which is gone then."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    line = WaitLine()
    line.show(QueuePlace(3, 12.0))
    line.show(QueuePlace(2, 8.0))
    line.clear()
    line.clear()

    said = capsys.readouterr().err
    assert "waiting: 3 before this one, about 12 s" in said
    assert said.count("\n") == 0
    assert said.endswith("\r\x1b[K")
    assert said.count("\r\x1b[K") == 3


def test_nothing_is_written_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """A file or a pipe holds what matters, and no more."""
    line = WaitLine()
    line.show(QueuePlace(3, 12.0))
    line.clear()

    assert capsys.readouterr().err == ""
