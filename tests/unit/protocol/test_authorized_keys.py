"""Lists of who may connect: words behind a name, edits that leave other lines alone, no text that ends the reader."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol import authorized_keys as lists
from zmqrt.protocol.authorized_keys import Principal
from zmqrt.protocol.errors import ConfigurationError

ONE, TWO, THREE = ("1" * 40).encode(), ("2" * 40).encode(), ("3" * 40).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a list with a comment and a key."""
    found = tmp_path / "authorized_clients"
    found.write_text(f"# ours\n\n{ONE.decode()} alice admin\n{TWO.decode()}\n")
    return found


def test_who_has_expired_or_was_revoked_is_listed_and_not_let_in(path: Path) -> None:
    """By name, so that a refusal can say whose key it was."""
    bob = f"{TWO.decode()} bob bridge revoked=2026-01-01T00:00:00Z"
    path.write_text(f"{ONE.decode()} alice expires=2020-01-01\n{bob}\n")
    listed = lists.load_list(path.parent, "clients")

    assert lists.load_allowed(path.parent, "clients") == {}
    assert listed[ONE].why_not(time.time()) == "the key of alice expired at 2020-01-01T00:00:00Z"
    assert listed[TWO].why_not(0.0) == "the key of bob was revoked (2026-01-01T00:00:00Z)"
    assert listed[ONE].why_not(0.0) == ""


def test_an_edit_leaves_the_other_lines_alone(path: Path) -> None:
    """Comments, empty lines, order; the word is set once, however often."""
    lists.add(path.parent, "clients", lists.line_of(THREE, Principal("carol", is_bridge=True), 1e9))
    for when in ("2026-01-01", "2026-01-02"):
        lists.mark(path.parent, "clients", TWO, {"revoked": when})

    carol = f"{THREE.decode()} carol bridge expires=2001-09-09T01:46:40Z"
    assert path.read_text().splitlines() == [
        "# ours",
        "",
        f"{ONE.decode()} alice admin",
        f"{TWO.decode()} 22222222 revoked=2026-01-02",
        carol,
    ]


@pytest.mark.parametrize(
    "line", ["bob expires=tomorrow", "bob expires=", "bob admin=yes", "bob admin admin", "bob once-more", "b" * 200]
)
def test_a_line_that_says_something_else_names_itself(path: Path, line: str) -> None:
    """Nothing is let in by a list that nobody can read."""
    path.write_text(f"# list\n{ONE.decode()} {line}\n")
    with pytest.raises(ConfigurationError, match=r"authorized_clients, line 2: expected|characters"):
        lists.load_list(path.parent, "clients")


def test_an_edit_that_would_spoil_the_list_writes_nothing(path: Path) -> None:
    """A name with other rights, a name of two words."""
    before = path.read_text()
    with pytest.raises(ConfigurationError, match="alice is admin on one line and not on another"):
        lists.add(path.parent, "clients", lists.line_of(THREE, Principal("alice"), None))
    for name in ("two words", "", "x" * 200, "a\tb"):
        with pytest.raises(ConfigurationError, match="expected a name of one word"):
            lists.line_of(THREE, Principal(name), None)

    assert path.read_text() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_of_many_who_edit_at_once_nobody_loses_a_line(path: Path) -> None:
    """Each waits for the other."""
    keys = [f"{number:040}".encode() for number in range(12)]
    lines = [lists.line_of(key, Principal(f"node-{key[-2:].decode()}"), None) for key in keys]
    editors = [threading.Thread(target=lists.add, args=(path.parent, "clients", line)) for line in lines]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join()

    assert set(keys) <= set(lists.load_list(path.parent, "clients"))


@given(st.text(max_size=200), st.sampled_from([ONE, TWO]))
def test_no_text_ends_the_reader_and_edits_keep_what_was_read(text: str, key: bytes) -> None:
    """It is a list or a ConfigurationError; a list stays one when a key is revoked."""
    for whole in (text, f"{key.decode()} {text}"):
        try:
            before = lists.parse(whole, Path("list"))
        except ConfigurationError:
            continue
        after = lists.parse(lists.marked(whole, key, {"revoked": "now"}), Path("list"))
        assert before.keys() == after.keys()
        assert (key in after) is (key in after and after[key].revoked == "now")


def test_a_line_that_is_good_once_is_replaced_by_a_key_of_its_name(path: Path) -> None:
    """In one step, and once; it lets nobody in itself. The new key lasts, whatever the line did."""
    now = time.time()
    lists.add(path.parent, "clients", lists.line_of(THREE, Principal("carol", is_bridge=True), now + 60, is_once=True))
    assert THREE not in lists.load_allowed(path.parent, "clients")
    own = b"4" * 40
    assert lists.enrol(path.parent, "clients", THREE, own, now).name == "carol"

    assert lists.load_list(path.parent, "clients")[own] == lists.ListedKey(own, Principal("carol", is_bridge=True))
    before = path.read_text()
    for line_key, why in ((THREE, "the line for carol was used up"), (ONE, "not listed as good once")):
        with pytest.raises(ConfigurationError, match=why):
            lists.enrol(path.parent, "clients", line_key, b"5" * 40, now)
    assert path.read_text() == before


@pytest.mark.parametrize("public", [b"", b"short", b"6" * 41, "é".encode() * 20, TWO, b"7" * 39 + b" "])
def test_what_is_no_key_of_a_machines_own_is_not_listed(path: Path, public: bytes) -> None:
    """Nor one that is listed already: it would come back with other rights."""
    lists.add(path.parent, "clients", lists.line_of(THREE, Principal("carol"), None, is_once=True))
    with pytest.raises(ConfigurationError, match="a key of its own"):
        lists.enrol(path.parent, "clients", THREE, public, 0.0)
