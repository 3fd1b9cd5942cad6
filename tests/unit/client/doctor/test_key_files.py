"""The folder of keys: judged from facts, and from real files."""

import sys
from pathlib import Path

import pytest

from zmqrt.client.doctor.check import Check
from zmqrt.client.doctor.key_files import KeyFacts, KeyFile, PartFacts, judge
from zmqrt.client.doctor.probe_here import key_files
from zmqrt.protocol import keys

GOOD = [PartFacts("client"), PartFacts("worker"), PartFacts("broker")]
needs_modes = pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A fleet's keys, as they are made."""
    keys.generate(tmp_path)
    return tmp_path


def unwell(facts: KeyFacts | None) -> list[Check]:
    """Return what is not ok."""
    return [one for one in judge(facts) if one.verdict != "ok"]


def facts(*files: KeyFile) -> KeyFacts:
    """Make facts of a folder in which only modes may be wrong."""
    return KeyFacts(directory="k", parts=GOOD, files=files)


def test_no_keys_are_no_fault() -> None:
    """On loopback nobody needs any."""
    assert unwell(None) == []


def test_keys_as_they_are_made_are_well(made: Path) -> None:
    """All three parts, and nobody else's."""
    found = judge(key_files(made))

    assert {one.verdict for one in found} == {"ok"}
    assert {"folder", "client", "worker", "broker"} <= {one.name for one in found}


def test_a_folder_that_is_not_there_is_bad(tmp_path: Path) -> None:
    """It is named."""
    (one,) = unwell(key_files(tmp_path / "nowhere"))

    assert one.verdict == "bad"
    assert "nowhere" in one.found
    assert "zmqrt keygen" in one.remedy


def test_a_folder_that_cannot_be_read_is_bad() -> None:
    """So are its parts, which nobody can see."""
    (one,) = unwell(KeyFacts(directory="k", error="k cannot be read: Permission denied"))

    assert one.verdict == "bad"
    assert "readable" in one.remedy


def test_a_pair_that_does_not_match_is_bad(made: Path) -> None:
    """One half of another part's."""
    (made / "client" / "public.key").write_bytes((made / "worker" / "public.key").read_bytes())

    (one,) = unwell(key_files(made))

    assert (one.name, one.verdict) == ("client", "bad")
    assert "do not belong together" in one.found
    assert "copy" in one.remedy


def test_a_missing_file_is_bad(made: Path) -> None:
    """A client needs the broker's public key too."""
    (made / "broker" / "public.key").unlink()

    found = unwell(key_files(made))

    assert {one.name for one in found} == {"client", "worker", "broker"}
    assert all(one.verdict == "bad" and "is missing" in one.found for one in found)


def test_a_list_that_cannot_be_read_is_the_brokers(made: Path) -> None:
    """File and line are named."""
    (made / "authorized_clients").write_text("nonsense\n", encoding="utf-8")

    (one,) = unwell(key_files(made))

    assert (one.name, one.verdict) == ("broker", "bad")
    assert "line 1" in one.found


def test_a_client_machine_needs_its_part_alone(made: Path) -> None:
    """And the broker's public key."""
    for path in (made / "worker", made / "broker"):
        for file in path.glob("s*.key" if path.name == "broker" else "*"):
            file.unlink()
    (made / "worker").rmdir()

    assert unwell(key_files(made)) == []


def test_a_machine_without_the_part_of_clients_is_a_note() -> None:
    """Workers need none of it; a folder without any part is bad."""
    assert [one.verdict for one in unwell(KeyFacts(directory="k", parts=[PartFacts("worker")]))] == ["note"]
    assert [one.verdict for one in unwell(KeyFacts(directory="k"))] == ["bad"]


@needs_modes
def test_a_secret_that_others_may_read_is_bad(made: Path) -> None:
    """The remedy can be pasted."""
    secret = made / "client" / "secret.key"
    secret.chmod(0o644)

    (one,) = unwell(key_files(made))

    assert (one.name, one.verdict) == ("permissions", "bad")
    assert f"chmod 600 {secret}" in one.remedy


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o602, 1)])
def test_a_secret_is_its_owners_alone(mode: int, count: int) -> None:
    """Reading and changing alike."""
    assert len(unwell(facts(KeyFile("a b", mode, is_secret=True)))) == count


@pytest.mark.parametrize(("mode", "remedies"), [(0o644, []), (0o664, ["run: chmod go-w 'a b'"])])
def test_whoever_may_change_a_list_may_let_anybody_in(mode: int, remedies: list[str]) -> None:
    """Reading it harms nobody."""
    assert [one.remedy for one in unwell(facts(KeyFile("a b", mode, is_secret=False)))] == remedies


def test_where_modes_mean_nothing_they_are_not_judged() -> None:
    """Windows."""
    assert "permissions" not in {one.name for one in judge(facts(KeyFile("k", None, is_secret=True)))}
