"""The screen of `zmqrt top`, read as a person reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len

from support.snapshots import event, many, node, request, service, snapshot
from support.top import fleet_of, lines_of, text_of
from zmqrt.client.top.fleet import BrokerView, merge
from zmqrt.client.top.history import FleetHistory
from zmqrt.client.top.state import Focus, Page, ViewState
from zmqrt.client.top.view import once
from zmqrt.protocol.request_trace import Attempt, RequestTrace

SIZES = [(80, 24), (160, 50), (40, 10), (120, 30), (20, 5), (300, 80)]


def line_with(lines: list[str], words: str) -> str:
    """Return the only line that holds some words."""
    (found,) = [line for line in lines if words in line]
    return found


def busy() -> Any:
    """Return a fleet with one of everything."""
    loading = msgspec.structs.replace(node("b"), phase="loading", percent=45)
    device = msgspec.structs.replace(loading.devices[0], phase="loading", percent=45)
    loading = msgspec.structs.replace(loading, devices=[device])
    return snapshot(
        node("a"),
        loading,
        node("c", health="suspect"),
        node("d", health="evicted"),
        services=[service("m", queued=3)],
        requests=[request("job-1", age_s=61.0), request("job-2", phase="queued", node_id="")],
        events=[event(1), event(2, "its connection broke", kind="lost", level="warning")],
        counters={"completed": 1234, "rejected_queue_full": 7, "redispatches": 2, "resumes": 1, "cancelled": 4},
        tallies={"failures": {"poison": 1, "stalled": 2}},
        queued=3,
        running=9,
        uptime_s=100.0,
    )


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("page", list(Page))
def test_every_screen_is_exactly_filled(width: int, height: int, page: Page) -> None:
    """Whatever the size and the page: no line too long or too many, the last one at the bottom."""
    many_nodes = msgspec.structs.replace(busy(), nodes=many(30, 8).nodes)
    for one in (busy(), many_nodes, snapshot()):
        for state in (ViewState(page=page), ViewState(page=page, focus=Focus.REQUESTS, selected_node="uuid-a")):
            lines = lines_of(fleet_of(one), state, width=width, height=height)
            assert len(lines) == height
            assert max(map(cell_len, lines)) <= width


def test_the_head_tells_how_the_fleet_is() -> None:
    """Brokers, nodes by condition, work, and what went wrong since the start."""
    lines = lines_of(fleet_of(busy()), width=120)

    assert lines[0].startswith("zmqrt top  b ready up 1 min")
    assert lines[0].endswith("12:00:00")
    assert "1 healthy   1 loading   1 suspect   0 draining   1 lost" in lines[1]
    assert "9/8 running   3 waiting" in line_with(lines, "work  ")
    counts = line_with(lines, "so far")
    for words in ("1234 answered", "3 failed", "7 refused", "2 moved", "1 resumed", "4 cancelled"):
        assert words in counts


def test_nodes_say_in_words_how_they_are() -> None:
    """Health with the age of the last sign of life, the progress while loading, and what a device is at."""
    lines = lines_of(fleet_of(busy()))

    assert "active 0 s" in lines[6]
    assert "loading ██░░ 45%" in line_with(lines, "45%")
    assert "suspect 0 s" in line_with(lines, "suspect 0 s")
    assert "gone" in line_with(lines, "evicted 0 s")


def test_a_wide_screen_shows_what_the_driver_tells_and_the_models() -> None:
    """Memory, how busy, how warm; a narrow one leaves them out."""
    warm = msgspec.structs.replace(
        node("a").devices[0],
        memory_bytes=80 << 30,
        memory_used_bytes=61 << 30,
        busy_percent=97,
        celsius=71,
        reused_tokens=30,
        prompt_tokens=10,
    )
    fleet = fleet_of(snapshot(msgspec.structs.replace(node("a"), devices=[warm]), services=[service("tiny")]))
    wide, narrow = lines_of(fleet, width=160, height=50), lines_of(fleet)

    for words in ("61.0G/80.0G", "97%", "71°", "75%"):
        assert words in line_with(wide, "61.0G")
    assert any(line.startswith("tiny ") for line in wide)
    assert not any("61.0G" in line for line in narrow)


def test_a_device_on_a_fallback_says_so_and_its_page_why() -> None:
    """Every word of the reason, however narrow the screen."""
    why = "Triton's kernels are left out: the self-test is off by 3.2 at token 0 of 2, where 0.2 is allowed"
    fallen = msgspec.structs.replace(node("a").devices[0], fallback=why)
    fleet = fleet_of(snapshot(msgspec.structs.replace(node("a"), devices=[fallen]), node("b")))
    page = lines_of(fleet, ViewState(page=Page.NODE, selected_node="uuid-a"), width=60)

    assert "ready, fallback" in line_with(lines_of(fleet), "fallback")
    assert why in " ".join(line.strip() for line in page)


def test_more_devices_than_rows_become_a_row_for_each_node() -> None:
    """And more nodes than rows a note of how many are left out; the selected one is always there."""
    few = lines_of(fleet_of(many(10, 8)))
    lots = fleet_of(many(60, 8))
    last = lines_of(lots, ViewState(selected_node="uuid-node-59"))

    assert sum("8 devices" in line for line in few) == 10
    assert "more rows" in "".join(lines_of(lots))
    assert any(line.startswith("node-59") for line in last)


def test_requests_and_events_share_the_rest() -> None:
    """The oldest requests and the newest events come first."""
    lines = lines_of(fleet_of(busy()))
    oldest, newest = line_with(lines, "job-1"), line_with(lines, "its connection broke")

    assert lines.index(oldest) < lines.index(line_with(lines, "job-2"))
    assert "61.0 s" in oldest
    assert newest.split() == ["1", "min", "lost", "n2:", "its", "connection", "broke"]
    assert lines.index(newest) < lines.index(line_with(lines, "joined n1"))


def test_several_brokers_are_named_one_that_is_gone_too() -> None:
    """And each event says who tells it."""
    one = snapshot(node("a"), events=[event(1)])
    views = [
        BrokerView(endpoint="tcp://x:1", snapshot=one),
        BrokerView(endpoint="tcp://y:1", problem="nobody listens at tcp://y:1; start one"),
    ]
    lines = lines_of(merge(views), width=120)
    nobody = lines_of(merge(views[1:]), width=60)

    assert "b ready" in lines[0]
    assert "tcp://y:1 unreachable" in lines[0]
    assert "(b)" in line_with(lines, "joined n1")
    assert "nobody listens at tcp://y:1" in " ".join(nobody)
    assert "trying again" in " ".join(nobody)
    assert "unknown" in nobody[1]


def test_names_cannot_move_the_cursor_or_colour_the_screen() -> None:
    """From an older broker, or from a file that somebody made."""
    bad = msgspec.structs.replace(node("a\x1b[2J[red]\n:smile:"), services=["x\x07"])
    fleet = fleet_of(snapshot(bad, requests=[request("r\x1b]0;t\x07")], events=[event(1, "[/b]\x1b[1m")]))
    shown = text_of(once(fleet, FleetHistory(), 160), width=160)

    assert all(one.isprintable() for one in shown.split("\n"))
    assert "[red]" in shown
    assert ":smile:" in shown
    assert "[/b]" in shown
    assert len(lines_of(fleet)) == 24


def test_the_footer_asks_and_tells() -> None:
    """Keys, or the question, or what is typed, or what came of it."""
    fleet = fleet_of(busy())

    assert lines_of(fleet)[-1].startswith("q quit")
    assert "Drain gpu-1" in lines_of(fleet, ViewState(draining="gpu-1"))[-1]
    assert lines_of(fleet, ViewState(is_typing=True, words="gp"))[-1].startswith("filter: gp")
    assert lines_of(fleet, ViewState(words="gpu"))[-1].startswith("filter: gpu")
    assert lines_of(fleet, ViewState(message="done"))[-1] == "done"
    assert "PAUSED" in lines_of(fleet, ViewState(is_paused=True))[0]


def test_a_filter_leaves_out_what_does_not_match() -> None:
    """Nodes, requests and events alike."""
    lines = "\n".join(lines_of(fleet_of(busy()), ViewState(words="job-2")))

    assert "job-1" not in lines
    assert "job-2" in lines
    assert "no node matches the filter" in lines


def test_a_node_and_a_trace_have_a_page() -> None:
    """What is known of it; of a node that is gone, that it is."""
    trace = RequestTrace(
        broker_id="b",
        rid="00",
        request_id="job-1",
        user="",
        model="m",
        is_stream=True,
        state="streaming",
        ago_s=2.0,
        age_s=2.0,
        queued_behind=4,
        queued_why="all 2 nodes were busy",
        begun_elsewhere=0,
        units=7,
        attempts=[Attempt(node="a", dispatched_s=1.0, from_unit=0, units=7, first_s=1.5, device="cuda:0", batch=3)],
    )
    fleet = fleet_of(busy())
    about_node = "\n".join(lines_of(fleet, ViewState(page=Page.NODE, selected_node="uuid-a")))
    gone = "\n".join(lines_of(fleet, ViewState(page=Page.NODE, selected_node="uuid-z")))
    told = "\n".join(lines_of(fleet, ViewState(page=Page.REQUEST, traces=(trace,))))

    assert "2 of 8 requests" in about_node
    assert "cancels  0" in about_node
    assert "this node is gone" in gone
    assert "4 waited before it" in told
    assert "first token on cuda:0, in a batch of 3" in told
    assert "asking the broker" in "\n".join(lines_of(fleet, ViewState(page=Page.REQUEST)))


def test_pages_scroll_to_their_end_and_no_further() -> None:
    """However often a key is pressed."""
    fleet = fleet_of(snapshot(events=[event(number) for number in range(100)]))
    state = ViewState(page=Page.EVENTS)

    assert "joined n99" in "\n".join(lines_of(fleet, state))
    assert "joined n0:" in lines_of(fleet, replace(state, scroll=10_000))[-2]


def test_what_matters_can_be_read_without_colours() -> None:
    """The same words with and without; a chosen row is reversed, which is no colour."""
    fleet = fleet_of(busy())
    history = FleetHistory()
    history.fold(fleet.views, 0.0)
    plain = text_of(once(fleet, history, 100), width=100)
    colourful = text_of(once(fleet, history, 100), width=100, color="truecolor")

    assert "\x1b" not in plain
    assert "\x1b[" in colourful
    for words in ("1 suspect", "evicted 0 s", "loading", "lost n2: its connection broke", "job-1"):
        assert words in plain


def test_once_shows_all_however_much_there_is() -> None:
    """It is for pipes and logs, which scroll."""
    fleet = fleet_of(many(40, 8))

    assert text_of(once(fleet, FleetHistory(), 160), width=160).count("cuda:") == 320


def test_what_models_and_nodes_can_do_is_told() -> None:
    """Of two brokers that count the same nodes, each node once."""
    able = service("m", nodes=2, capabilities={"logprobs": 2, "tools": 1})
    nodes = node("a", capabilities=["logprobs", "tools"]), node("b", capabilities=["logprobs"])
    views = [
        BrokerView(
            endpoint=f"tcp://{name}:1", snapshot=snapshot(*nodes, services=[able], broker_id=name, broker_epoch=epoch)
        )
        for epoch, name in enumerate("xy")
    ]

    for seen in (views[:1], views):
        fleet = merge(seen)
        assert "logprobs, tools (1 of 2)" in line_with(
            lines_of(fleet, ViewState(page=Page.MODELS), width=200), "generate"
        )
        shown = lines_of(fleet, ViewState(page=Page.NODE, selected_node="uuid-a"), width=120)
        assert line_with(shown, "can do").strip() == "can do logprobs, tools"
