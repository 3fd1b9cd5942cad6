"""Keys of `zmqrt top`: what each does to the picture, and what it asks for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from support.snapshots import event, node, request, snapshot
from support.top import fleet_of, lines_of
from zmqrt.client.top.fleet import MergedFleet
from zmqrt.client.top.state import (
    SORTS,
    DrainNode,
    ExplainRequest,
    Focus,
    Page,
    Quit,
    TopCommand,
    ViewState,
    nodes_of,
    press,
)

FLEET = fleet_of(
    snapshot(
        node("a"),
        node("b", health="suspect", tokens=50),
        node("c"),
        requests=[request("job-1"), request("job-2")],
        events=[event(1)],
    )
)
NAMED = (
    *("up", "down", "left", "right", "home", "end", "page-up", "page-down"),
    *("enter", "escape", "tab", "space", "backspace"),
)


def type_in(
    *keys: str, state: ViewState | None = None, fleet: MergedFleet = FLEET
) -> tuple[ViewState, TopCommand | None]:
    """Press keys, one after the other; return the last command."""
    now, command = state or ViewState(), None
    for key in keys:
        now, command = press(now, key, fleet)
    return now, command


def test_arrows_select_and_stay_inside_the_list() -> None:
    """The first press selects the first; the ends hold."""
    assert type_in("down")[0].selected_node == "uuid-a"
    assert type_in("down", "down", "j")[0].selected_node == "uuid-c"
    assert type_in(*["down"] * 9)[0].selected_node == "uuid-c"
    assert type_in("end", "up", "k", "up")[0].selected_node == "uuid-a"
    assert type_in("tab", "down", "down")[0].selected_request == FLEET.requests[1].request.rid


def test_a_node_is_drained_after_a_question_only() -> None:
    """Any other key than y leaves it alone."""
    asked, no_wish = type_in("down", "down", "x")
    assert (asked.draining, no_wish) == ("b", None)
    assert press(asked, "y", FLEET)[1] == DrainNode("b")
    for key in ("n", "enter", "escape", "x", "q", "space"):
        left, command = press(asked, key, FLEET)
        assert (left.draining, command) == ("", None)
    assert "select a node first" in type_in("x")[0].message


def test_nobody_drains_what_cannot_be_seen() -> None:
    """On a page that shows no nodes, or behind a filter: the question would come as a surprise."""
    selected = ViewState(selected_node="uuid-b")
    assert press(selected, "x", FLEET)[0].draining == "b"
    for hidden in (ViewState(selected_node="uuid-b", page=Page.HELP), ViewState(selected_node="uuid-b", words="zzz")):
        assert press(hidden, "x", FLEET)[0].draining == ""


def test_pasted_text_is_no_row_of_commands() -> None:
    """It goes into the filter, if that is open; else nowhere."""
    for state in (ViewState(selected_node="uuid-a"), ViewState(selected_node="uuid-a", draining="a")):
        assert press(state, "paste:xyq", FLEET) == (state, None)
    typed, _ = press(ViewState(is_typing=True), "paste:gpu\x1b-1\n", FLEET)
    assert typed.words == "gpu-1"


def test_enter_opens_and_escape_leads_back() -> None:
    """A node has a page; the story of a request is asked for where it was told."""
    assert type_in("down", "enter")[0].page is Page.NODE
    opened, command = type_in("tab", "down", "enter")
    assert opened.page is Page.REQUEST
    assert command == ExplainRequest("tcp://b0:1", FLEET.requests[0].request.rid)
    assert press(opened, "escape", FLEET)[0].page is Page.FLEET
    assert "select" in type_in("enter")[0].message
    assert "select" in type_in("tab", "enter")[0].message


def test_a_filter_is_typed_kept_and_cleared() -> None:
    """Letters that are keys elsewhere are letters there."""
    typed, _ = type_in("/", "q", "x", "space", "backspace", "backspace")
    assert (typed.words, typed.is_typing) == ("q", True)
    kept, _ = type_in("enter", state=typed)
    assert (kept.words, kept.is_typing) == ("q", False)
    assert type_in("escape", state=kept)[0].words == ""
    assert type_in("escape", state=typed)[0] == ViewState()
    assert len(type_in("/", *["a"] * 500)[0].words) == 40


def test_sorting_goes_round_and_turns_round() -> None:
    """Whoever is unwell comes first by health, whoever made most by tokens."""
    by_health, by_tokens = ViewState(sort="health"), ViewState(sort="tokens")

    assert nodes_of(by_health, FLEET)[0].node_id == "b"
    assert nodes_of(by_tokens, FLEET)[0].node_id == "b"
    assert [one.node_id for one in nodes_of(type_in("r")[0], FLEET)] == ["c", "b", "a"]
    assert type_in(*["s"] * len(SORTS))[0].sort == "name"


def test_keys_that_leave() -> None:
    """Whatever is on the screen, ctrl-c does."""
    for state in (ViewState(), ViewState(is_typing=True), ViewState(draining="b"), ViewState(page=Page.HELP)):
        assert press(state, "ctrl-c", FLEET)[1] == Quit()
    assert type_in("q")[1] == Quit()
    assert type_in("/", "q")[1] is None


def test_pages_open_and_close_by_their_own_key() -> None:
    """Events, models, help; pause and devices are switches."""
    for key, page in (("e", Page.EVENTS), ("m", Page.MODELS), ("?", Page.HELP)):
        assert type_in(key)[0].page is page
        assert type_in(key, key)[0].page is Page.FLEET
    assert type_in("space")[0].is_paused
    assert not type_in("space", "p")[0].is_paused
    assert [type_in(*["d"] * count)[0].with_devices for count in range(4)] == [None, True, False, None]
    assert type_in("tab")[0].focus is Focus.REQUESTS


@given(st.lists(st.one_of(st.sampled_from(NAMED), st.characters()), max_size=60))
def test_no_key_breaks_anything(keys: list[str]) -> None:
    """Any keys, on a fleet and on none: the screen can be drawn, and stays as it must be."""
    for fleet in (FLEET, fleet_of()):
        state = ViewState()
        for key in keys:
            state, command = press(state, key, fleet)
            if isinstance(command, Quit):
                break
        assert len(lines_of(fleet, state)) == 24
