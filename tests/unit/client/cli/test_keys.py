"""`zmqrt keys http`: what it writes is what the bridge reads, and no key is anywhere but in what it prints once."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from zmqrt.client.cli.main import cli
from zmqrt.protocol.api_keys import ApiKey, digest_of, read_key_file, read_ring


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a file that is not there yet."""
    return tmp_path / "keys"


def run(path: Path, *words: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, ["keys", "http", *words, "--file", str(path)], catch_exceptions=True)


def add(path: Path, *words: str) -> str:
    """Make a key and return it."""
    result = run(path, "add", *words)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def ring(path: Path) -> dict[bytes, ApiKey]:
    """Read the file as a bridge does."""
    return read_ring(read_key_file(path))


def listed(path: Path) -> list[dict[str, Any]]:
    """Return what `list --json` says."""
    found: list[dict[str, Any]] = json.loads(run(path, "list", "--json").stdout)
    return found


def test_a_key_is_printed_once_and_kept_as_its_hash(path: Path) -> None:
    """In a file that only its owner can read; with what goes for it."""
    more = ("--name", "ci", "--models", "tiny,llama-*", "--priority", "bulk", "--rpm", "60", "--budget", "5M")
    key = add(path, "acme", *more, "--expires", "2099-01-31")
    text = path.read_text()

    assert len(key) > 43
    assert key not in text
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = ring(path)[digest_of(key.encode())]
    assert (found.tenant, found.name, found.models, found.priority) == ("acme", "ci", ("tiny", "llama-*"), "bulk")
    assert (found.limits.rpm, found.limits.tpm, found.limits.budget) == (60, None, 5_000_000)
    (shown,) = listed(path)
    assert (shown["id"], shown["expires"], shown["is_let_in"]) == (found.id, "2099-01-31T00:00:00Z", True)
    assert found.id in run(path, "list").output


def test_what_people_wrote_stays(path: Path) -> None:
    """Comments, plain keys, the limits of a tenant; no other file is left behind."""
    path.touch(0o600)
    path.write_text("# ours\nacme:plain key\nacme:* budget=1M")
    add(path, "acme")

    assert path.read_text().startswith("# ours\nacme:plain key\nacme:* budget=1M\nacme:sha256$")
    assert [key["tenant_limits"]["budget"] for key in listed(path)] == [1_000_000] * 2
    assert [file.name for file in path.parent.iterdir()] == ["keys"]


def test_a_revoked_key_is_told_why(path: Path) -> None:
    """By id, or by the name of its holder; a second time is an error."""
    first, second = add(path, "acme", "--name", "a"), add(path, "acme", "--name", "b")
    assert run(path, "revoke", "acme/a").exit_code == 0
    id_of_second = ring(path)[digest_of(second.encode())].id
    assert run(path, "revoke", id_of_second).exit_code == 0

    assert all("was revoked (2" in ring(path)[digest_of(key.encode())].why_not(0) for key in (first, second))
    assert [key["is_let_in"] for key in listed(path)] == [False, False]
    again = run(path, "revoke", "acme/a")
    assert again.exit_code != 0
    assert "revoked already" in str(again.exception)


def test_a_plain_key_can_be_revoked(path: Path) -> None:
    """It is hashed by that."""
    path.touch(0o600)
    path.write_text("acme:plain key\n")
    assert run(path, "revoke", listed(path)[0]["id"]).exit_code == 0

    assert "plain" not in path.read_text()
    assert ring(path)[digest_of(b"plain key")].revoked


def test_rotation_overlaps_and_keeps_what_goes_for_the_key(path: Path) -> None:
    """The name too, by which is counted what has been used; the old one ends, but never later than it would have."""
    old = add(path, "acme", "--name", "ci", "--rpm", "60")
    result = run(path, "rotate", "acme/ci", "--overlap", "2h")
    assert result.exit_code == 0
    new = result.stdout.strip()

    was, now = ring(path)[digest_of(old.encode())], ring(path)[digest_of(new.encode())]
    assert (now.name, now.limits, now.expires) == ("ci", was.limits, None)
    assert was.expires is not None
    assert "acme/ci means 2 keys" in str(run(path, "rotate", "acme/ci").exception)

    assert run(path, "rotate", was.id, "--overlap", "30d").exit_code == 0
    assert ring(path)[digest_of(old.encode())].expires == was.expires


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("acme", "--rpm", "none"), "a whole number from 1"),
        (("acme", "--rpm", "0"), "a whole number from 1"),
        (("acme", "--expires", "soon"), "a day such as"),
        (("acme", "--priority", "urgent"), "urgent"),
        (("acme", "--name", "a/b"), "a name of at most"),
        (("acme", "--name", "a rpm=1"), "words without spaces"),
        (("acme:b",), "without colon"),
        (("#acme",), "comment"),
        (("", "--rpm", "1"), "tenant:key"),
    ],
)
def test_what_the_bridge_would_not_read_is_not_written(path: Path, words: tuple[str, ...], why: str) -> None:
    """The mistake is named, and there is no file."""
    result = run(path, "add", *words)

    assert result.exit_code != 0
    assert why in result.output + str(result.exception)
    assert not path.exists()


def test_a_file_that_others_may_read_is_refused(path: Path) -> None:
    """As the bridge does."""
    path.write_text("acme:plain\n")
    path.chmod(0o644)

    assert os.name == "nt" or "chmod 600" in str(run(path, "add", "acme").exception)


@pytest.mark.skipif(os.name == "nt", reason="files have owners there, and no numbers for them")
def test_a_file_that_root_edits_stays_its_owners(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the bridge cannot read it any more: the older keys count, and so does the one that was revoked."""
    add(path, "acme", "--name", "ci")
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(Path, "stat", partialmethod(_of_a_service, Path.stat))

    def give(_handle: int, uid: int, gid: int) -> None:
        given.append((uid, gid))

    monkeypatch.setattr(os, "fchown", give)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    assert run(path, "revoke", "acme/ci").exit_code == 0
    assert given == [(999, 998)]


def _of_a_service(path: Path, real: Callable[..., os.stat_result], **how: bool) -> os.stat_result:
    found = real(path, **how)
    return os.stat_result((*found[:4], 999, 998, *found[6:]))


def test_lines_of_windows_stay_as_they_are(path: Path) -> None:
    """And a mark at the beginning harms nothing; the others are read as before."""
    key = add(path, "acme", "--name", "ci")
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"globex:plain#1\r\n")
    assert run(path, "revoke", "acme/ci").exit_code == 0

    assert path.read_bytes().count(b"\r") == text.count("\n")
    assert [not found.why_not(0) for found in ring(path).values()] == [False, True]
    assert digest_of(key.encode()) in ring(path)
