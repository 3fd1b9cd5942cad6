"""What `zmqrt doctor` finds, from snapshots, versions and folders of keys; and how it is shown."""

import io
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from support import snapshots
from zmqrt.client.cli import cmd_doctor, doctor
from zmqrt.client.cli.doctor import Finding
from zmqrt.protocol import keys
from zmqrt.protocol.snapshot import NodeHealth, NodeStatus, Snapshot

GROUP = "broker tcp://127.0.0.1:7555"
NODE = snapshots.node("node-0", services=["tiny"], devices=[])
SERVICE = snapshots.service("tiny")
SNAPSHOT = snapshots.snapshot(NODE, services=[SERVICE], broker_id="b1", uptime_s=75.0)
LONG = "read the log of node-1: its last lines name the device, the reason and what to do, in as many words as it takes"


def unwell(findings: Iterable[Finding]) -> list[Finding]:
    """Return what is not ok; each says what to do."""
    found = [finding for finding in findings if finding.verdict != "ok"]
    assert all(finding.remedy for finding in found)
    return found


def of_broker(snapshot: Snapshot) -> list[Finding]:
    """Check a broker that answered at once."""
    return list(doctor.check_snapshot(GROUP, snapshot, 0.0015))


# --- software --------------------------------------------------------------------------------------------------------


def test_what_is_installed_here_is_well() -> None:
    """These tests could not run otherwise."""
    assert unwell(doctor.check_software(has_keys=True)) == []


def test_packages_that_are_missing_or_old_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setattr(doctor, "installed", {"a": None, "b": "1.9.9", "c": "2.0+cpu"}.get)
    missing, old = unwell(doctor.check_packages("software", {"a": "3", "b": "1.10", "c": "2.0"}))

    assert (missing.name, missing.found, missing.remedy) == ("a", "not installed", "run: pip install --upgrade 'a>=3'")
    assert (old.name, old.found) == ("b", "1.9.9 is too old")


@pytest.mark.parametrize(("version", "verdict"), [("4.3.2", "bad"), ("4.3.4", "note"), ("4.3.5", "ok"), ("4.10", "ok")])
def test_a_libzmq_with_known_holes_is_bad(version: str, verdict: str) -> None:
    """And one that nobody tries is a note."""
    assert doctor.check_libzmq(version).verdict == verdict


@pytest.mark.parametrize(("has_keys", "verdict"), [(True, "bad"), (False, "note")])
def test_keys_need_encryption(has_keys: bool, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - parametrized
    """A libzmq may be built without."""

    def has_not(_feature: str) -> bool:
        return False

    monkeypatch.setattr("zmq.has", has_not)

    assert [found.verdict for found in unwell(doctor.check_software(has_keys=has_keys))] == [verdict]


def test_what_is_needed_stands_in_our_own_metadata() -> None:
    """So no list falls behind pyproject.toml."""
    core, worker = doctor.requirements(), doctor.requirements("worker")

    assert core["pyzmq"] == "27"
    assert "torch" not in core
    assert {"torch", "transformers", "safetensors"} <= worker.keys()
    assert "pyzmq" not in worker
    assert all(map(doctor.numbers, (core | worker).values()))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("5.17.0rc1", (5, 17, 0)), ("27", (27,)), ("unknown", ()), ("", ())],
)
def test_a_version_is_its_leading_numbers(text: str, numbers: tuple[int, ...]) -> None:
    """Whatever a build adds to them."""
    assert doctor.numbers(text) == numbers


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A fleet's keys, as they are made, in a folder with a space in its name."""
    keys.generate(tmp_path / "fleet keys")
    return tmp_path / "fleet keys"


def test_no_keys_and_keys_as_they_are_made_are_well(made: Path) -> None:
    """On loopback nobody needs any."""
    found = list(doctor.check_keys(made))

    assert unwell(doctor.check_keys(None)) == []
    assert unwell(found) == []
    assert [finding.name for finding in found] == ["folder", "client", "admin", "worker", "broker"]


def test_a_folder_that_is_not_there_is_bad(tmp_path: Path) -> None:
    """It is named."""
    (found,) = unwell(doctor.check_keys(tmp_path / "nowhere"))

    assert found.verdict == "bad"
    assert "nowhere" in found.found
    assert "zmqrt keygen" in found.remedy


def test_a_pair_that_does_not_match_is_bad(made: Path) -> None:
    """One half of another part's."""
    (made / "client" / "public.key").write_bytes((made / "worker" / "public.key").read_bytes())
    (found,) = unwell(doctor.check_keys(made))

    assert (found.name, found.verdict) == ("client", "bad")
    assert "do not belong together" in found.found
    assert "copy" in found.remedy


def test_a_missing_file_is_bad_and_new_keys_are_no_advice(made: Path) -> None:
    """All need the broker's public key, and a fleet that runs has its keys."""
    (made / "broker" / "public.key").unlink()
    found = unwell(doctor.check_keys(made))

    assert [finding.name for finding in found] == ["client", "admin", "worker", "broker"]
    assert all(finding.verdict == "bad" and "is missing" in finding.found for finding in found)
    assert not any("keygen DIR" in finding.found + finding.remedy for finding in found)


def test_a_list_that_cannot_be_read_is_the_brokers(made: Path) -> None:
    """File and line are named."""
    (made / "authorized_clients").write_text("nonsense\n", encoding="utf-8")
    (found,) = unwell(doctor.check_keys(made))

    assert (found.name, found.verdict) == ("broker", "bad")
    assert "line 1" in found.found


def test_a_machine_has_the_part_that_it_needs(made: Path) -> None:
    """A client its own and the broker's public key; without any part of clients no command works from here."""
    for path in (*(made / "worker").iterdir(), made / "broker" / "secret.key"):
        path.unlink()
    (made / "worker").rmdir()
    assert unwell(doctor.check_keys(made)) == []

    for part in ("client", "admin"):
        (made / part).rename(made / part[::-1])
    (nothing,) = unwell(doctor.check_keys(made))
    (made / "reniw").mkdir()
    (made / "worker").mkdir()

    assert (nothing.verdict, nothing.found) == ("bad", "the folder holds the part of no role")
    assert [(found.name, found.verdict) for found in unwell(doctor.check_keys(made))][-1] == ("client", "note")


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
@pytest.mark.parametrize(("file", "mode"), [("client/secret.key", 0o644), ("authorized_workers", 0o666)])
def test_what_others_may_read_or_change_is_bad(made: Path, file: str, mode: int) -> None:
    """The command that is named mends it."""
    (made / file).chmod(mode)
    (found,) = unwell(doctor.check_keys(made))
    subprocess.run(found.remedy.removeprefix("run: "), shell=True, check=True)

    assert found.verdict == "bad"
    assert unwell(doctor.check_keys(made)) == []


# --- brokers ---------------------------------------------------------------------------------------------------------


def node(health: NodeHealth = "active", phase: str = "ready") -> NodeStatus:
    """Make another node."""
    return msgspec.structs.replace(NODE, node_id="node-1", health=health, phase=phase)


def test_a_broker_that_serves_is_well() -> None:
    """It tells its name, how fast it answered, nodes and models."""
    found = {finding.name: finding.found for finding in of_broker(SNAPSHOT)}

    assert unwell(of_broker(SNAPSHOT)) == []
    assert found == {"reach": "b1 answers in 1.5 ms", "nodes": "1 of 1 ready", "models": "tiny"}


@pytest.mark.parametrize(
    ("joined", "verdict", "words"),
    [
        ([], "note", "no node has joined"),
        ([NODE, node(phase="loading")], "note", "1 of 2 ready"),
        ([NODE, node(health="lost")], "note", "gone: node-1"),
        ([NODE, node(phase="failed")], "bad", "node-1 cannot serve"),
    ],
)
def test_nodes_that_do_not_serve_are_told(joined: list[NodeStatus], verdict: str, words: str) -> None:
    """Only one that gave up is bad."""
    (found,) = unwell(of_broker(msgspec.structs.replace(SNAPSHOT, nodes=joined)))

    assert (found.name, found.verdict) == ("nodes", verdict)
    assert words in found.found


def test_a_model_that_nobody_serves_and_a_broker_that_leaves_are_notes() -> None:
    """With how many wait for it."""
    idle = msgspec.structs.replace(SERVICE, service="large", nodes=0, queued=3)
    snapshot = msgspec.structs.replace(SNAPSHOT, services=[SERVICE, idle], draining=True)
    leaving, unserved = unwell(of_broker(snapshot))

    assert (leaving.verdict, unserved.verdict) == ("note", "note")
    assert unserved.found == "no node serves large now, 3 waiting"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nobody listens; start one", ("nobody listens", "start one")),
        ("no keys are set. Make some", ("no keys are set", "Make some")),
        ("tcp://1.2.3.4: cannot connect", ("tcp://1.2.3.4: cannot connect", "look")),
    ],
)
def test_an_error_says_itself_what_to_do_if_it_can(text: str, parts: tuple[str, str]) -> None:
    """And where it does not, somebody else does."""
    assert doctor.cut_remedy(text, "look") == parts


# --- words -----------------------------------------------------------------------------------------------------------

FINDINGS = [
    Finding("software", "Python", "ok", "3.11.7"),
    Finding("software", "encryption", "note", "libzmq was built without CURVE", "run: pip install pyzmq"),
    Finding("broker", "nodes", "bad", "1 of 2 ready; node-1 cannot serve", LONG),
]


def test_what_to_do_stands_below_and_fits_80_columns() -> None:
    """Whole, with its words in order; the verdict is a word."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(*cmd_doctor.tables(FINDINGS))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()

    assert max(map(len, shown.splitlines())) <= 80
    assert f"→ {LONG}" in " ".join(shown.split())
    assert [line.split()[0] for line in shown.splitlines()[:3]] == ["software", "ok", "note"]
    assert "BAD   nodes" in shown


def test_the_last_line_sums_up() -> None:
    """Notes are counted, and are no failure."""
    assert cmd_doctor.summary(FINDINGS[:1]).plain == "Nothing is broken."
    assert cmd_doctor.summary(FINDINGS[:2]).plain == "Nothing is broken, 1 note."
    assert cmd_doctor.summary(FINDINGS).plain == "1 thing to mend, 1 note."
