"""What people see of a fleet, as text."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console, RenderableType

from support.snapshots import DEVICE, node, service, snapshot
from zmqrt.client.cli.fleet_view import fleet_view
from zmqrt.client.cli.stack_view import LogDisplay, hints, live_view
from zmqrt.client.cli.supervise import Child, ChildState
from zmqrt.client.cli.text import BAR_CELLS, bar, duration

LOADING = msgspec.structs.replace(DEVICE, id="mock:0", phase="loading", percent=40, elapsed_s=3.2, tokens=1234)
NODE = node(
    "node-0",
    phase="loading",
    percent=40,
    services=["tiny"],
    devices=[LOADING, msgspec.structs.replace(LOADING, id="mock:1", phase="ready", percent=100)],
)
SNAPSHOT = snapshot(
    NODE, services=[service("tiny", nodes=0, queued=3)], broker_id="b1", uptime_s=75.0, ready=False, queued=3, running=2
)


def text(renderable: RenderableType, width: int = 120) -> str:
    """Render for a pipe."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def child(state: ChildState, **endpoints: str) -> Child:
    """A child that was never started."""
    made = Child("broker", "zmqrt.broker", [])
    made.state, made.endpoints = state, endpoints
    return made


def test_a_fleet_in_one_glance() -> None:
    """Broker, node, each device with what it does and how far it is."""
    shown = text(fleet_view(SNAPSHOT))

    assert "broker b1 not ready · up 1 min 15 s · 1 node · 1 client · 2 running · 3 waiting · models: tiny" in shown
    assert "node-0" in shown
    assert "active" in shown
    assert "2/8" in shown
    assert "mock:0" in shown
    assert "40 % 3 s" in shown
    assert "1234" in shown
    assert shown.count("node-0") == 1


def test_a_narrow_terminal_loses_no_line() -> None:
    """80 columns, as over ssh from a phone."""
    assert "loading ███░░░░░ 40 % 3 s" in text(fleet_view(SNAPSHOT), width=80)


def test_a_fallback_is_told_with_its_reason() -> None:
    """In a line of its own, whole: a row has no room for it."""
    why = "CUDA graphs are left out: the self-test is off by 3.2 at token 0 of 2, where 0.2 is allowed"
    fallen = msgspec.structs.replace(NODE, devices=[msgspec.structs.replace(DEVICE, id="cuda:0", fallback=why)])
    shown = text(fleet_view(msgspec.structs.replace(SNAPSHOT, nodes=[fallen])), width=80)

    assert "ready, on a fallback" in shown
    assert f"node-0 cuda:0 is on a fallback: {why}" in " ".join(shown.split())


def test_an_empty_fleet_says_what_to_start() -> None:
    """Most people see this once."""
    assert "start one with zmqrt-worker" in text(fleet_view(msgspec.structs.replace(SNAPSHOT, nodes=[])))


def test_durations_read_as_people_say_them() -> None:
    """Seconds, minutes, hours."""
    assert [duration(seconds) for seconds in (0.4, 59.9, 61, 3700)] == ["0 s", "59 s", "1 min 1 s", "1 h 1 min"]


def test_up_shows_processes_and_fleet() -> None:
    """One under the other."""
    shown = text(live_view([child(ChildState.READY, clients="tcp://127.0.0.1:7555")], SNAPSHOT))

    assert shown.index("tcp://127.0.0.1:7555") < shown.index("node-0")


def test_a_bar_is_readable_without_colours() -> None:
    """Full cells and empty ones; never more than there are."""
    assert [bar(share, BAR_CELLS).plain for share in (0, 0.5, 1, 7)] == ["░" * 8, "████░░░░", "█" * 8, "█" * 8]


def test_hints_name_the_actual_ports() -> None:
    """So that they can be pasted; the usual port need not be typed."""
    usual = "\n".join(hints("tcp://127.0.0.1:7555", "http://127.0.0.1:8000", None, {"generate": "tiny"}))
    free = "\n".join(hints("tcp://127.0.0.1:41001", None, None, {"generate": "tiny"}))
    keyed = "\n".join(hints("tcp://127.0.0.1:7555", None, Path("fleet-keys"), {"generate": "tiny"}))

    assert '  zmqrt infer "What is' in usual
    assert "curl http://127.0.0.1:8000/infer -d '{" in usual
    assert "Invoke-RestMethod -Method Post http://127.0.0.1:8000/infer" in usual
    assert "open http://127.0.0.1:8000/ in a browser" in usual
    assert "zmqrt infer --broker tcp://127.0.0.1:41001" in free
    assert "Client('tcp://127.0.0.1:41001')" in free
    assert "curl" not in free
    assert "browser" not in free
    assert "zmqrt infer --keys fleet-keys" in keyed
    assert "Client(keys='fleet-keys')" in keyed


def test_hints_ask_for_what_is_served() -> None:
    """An encoder refuses what a chat is asked; of several tasks each has its command."""
    encoder = "\n".join(hints("tcp://127.0.0.1:7555", "http://127.0.0.1:8000", None, {"embed": "minilm"}))
    every = "\n".join(
        hints("tcp://127.0.0.1:1", None, None, {"generate": "a", "embed": "b", "rerank": "c", "classify": "d"})
    )

    assert "  echo red | zmqrt embed -\n" in encoder
    assert """curl http://127.0.0.1:8000/v1/embeddings -d '{"model": "minilm", "input": "red"}'""" in encoder
    assert "in a browser: the fleet as it is.\n" in encoder
    assert not any(word in encoder for word in ("infer", "chat", "rerank", "classify"))
    commands = ("infer", "chat", "embed", "rerank", "classify")
    assert [f"zmqrt {name} --broker tcp://127.0.0.1:1" in every for name in commands] == [True] * 5


def test_a_log_gets_a_line_for_each_change_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    """Progress at every fifth, not at every percent; and the hints once."""
    log = LogDisplay()
    broker = child(ChildState.STARTING)
    log.show([broker], None, [])
    first = capsys.readouterr().out
    broker.state, broker.endpoints = ChildState.READY, {"clients": "tcp://x"}
    log.show([broker], SNAPSHOT, [])
    second = capsys.readouterr().out
    a_little_further = msgspec.structs.replace(NODE, devices=[msgspec.structs.replace(LOADING, percent=45)])
    for _ in range(2):
        log.show([broker], msgspec.structs.replace(SNAPSHOT, nodes=[a_little_further]), ["try this"])

    assert first == "broker: starting\n"
    assert second == "broker: ready tcp://x\nnode-0 mock:0: loading 40 %\nnode-0 mock:1: ready\n"
    assert capsys.readouterr().out == "\ntry this\n\n"


def test_what_models_can_do_is_told_and_where_not_all_nodes_can() -> None:
    """Those that are listed; a broker from before tells nothing of it, and nothing is shown."""
    mixed = service("mixed", nodes=3, capabilities={"logprobs": 3, "tools": 1})
    gone = service("gone", nodes=0, capabilities={"tools": 1}, is_listed=False)
    shown = text(fleet_view(msgspec.structs.replace(SNAPSHOT, services=[mixed, gone, service("plain")])))

    assert "mixed can do: logprobs, tools (1 of 3)\n" in shown
    assert "gone can" not in shown
    assert "plain can" not in shown
