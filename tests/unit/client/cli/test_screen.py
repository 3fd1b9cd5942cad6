"""What commands draw of a fleet whose brokers and nodes say hostile things."""

from __future__ import annotations

import io
import json
from typing import cast

import msgspec
import pytest

from support.snapshots import node, service, snapshot
from zmqrt.client.cli import cmd_models
from zmqrt.client.cli.fleet_view import fleet_view
from zmqrt.client.cli.stdio import data
from zmqrt.client.cli.text import screen
from zmqrt.client.cli.trace_view import trace_view
from zmqrt.client.top.fleet import BrokerView, merge
from zmqrt.client.top.history import FleetHistory
from zmqrt.client.top.view import once
from zmqrt.protocol.request_trace import Attempt, RequestTrace
from zmqrt.protocol.snapshot import Snapshot

EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\x08\x7f\u202eevil\u2028"
ORDERS = {*"\x1b\x07\x9b\x08\x7f\u202e\u2028"}
MARKUP = "[bold]b[/bold][/x]"


def evil(value: object) -> object:
    """Put hostile words into every text of a record."""
    if isinstance(value, str):
        return value if value in ("active", "ready", "generate", "embed", "done") else f"{EVIL}{MARKUP}"
    if isinstance(value, dict):
        return {key: evil(one) for key, one in cast("dict[str, object]", value).items()}
    return [evil(one) for one in cast("list[object]", value)] if isinstance(value, list) else value


SNAPSHOT = msgspec.convert(evil(msgspec.to_builtins(snapshot(node(), services=[service()]))), Snapshot)
STORY = RequestTrace(
    broker_id=EVIL,
    rid=EVIL,
    request_id=f"{EVIL}{MARKUP}",
    user=EVIL,
    model=f"{EVIL}{MARKUP}",
    is_stream=True,
    state="done",
    ago_s=1.0,
    age_s=1.0,
    queued_behind=0,
    queued_why=EVIL,
    begun_elsewhere=0,
    units=3,
    attempts=[
        Attempt(
            node=EVIL,
            dispatched_s=0.1,
            from_unit=0,
            units=3,
            first_s=0.2,
            last_s=0.3,
            ended_s=0.4,
            why=EVIL,
            device=EVIL,
        )
    ],
)


@pytest.mark.parametrize(
    "drawn",
    [
        fleet_view(SNAPSHOT),
        trace_view(STORY),
        cmd_models._table(SNAPSHOT.services),  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        once(
            merge([BrokerView(endpoint=EVIL, snapshot=SNAPSHOT), BrokerView(endpoint="tcp://b:1", problem=EVIL)]),
            FleetHistory(),
            100,
        ),
    ],
    ids=["status", "explain", "models", "top"],
)
def test_nothing_of_what_is_drawn_is_obeyed(drawn: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a terminal nor, square brackets, by the library that draws."""
    monkeypatch.setenv("NO_COLOR", "1")
    console = screen()
    console.file, console.width = io.StringIO(), 200

    console.print(drawn)

    shown = console.file.getvalue()
    assert "evil" in shown
    assert not ORDERS & set(shown)


def test_data_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """And says the same."""
    data({"node": EVIL})

    line = capsys.readouterr().out
    assert not ORDERS & set(line)
    assert json.loads(line) == {"node": EVIL}
