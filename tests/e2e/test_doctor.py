"""`zmqrt doctor` as people run it: against a fleet, against nobody, and with keys that others may read."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from support.cli import zmqrt
from support.nvml import with_driver
from support.stack import Stack, running
from zmqrt.client.cli.doctor import check_brokers, check_worker
from zmqrt.client.config import ClientSettings
from zmqrt.protocol import keys

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that is ours and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """A broker and a mock node."""
    with running() as stack:
        yield stack


def examined(*words: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Run it; return the exit code, and the checks by group and name."""
    result = zmqrt("doctor", "--json", "--no-worker", *words)
    (line,) = result.stdout.splitlines()
    return result.returncode, {(check["group"], check["name"]): check for check in json.loads(line)["checks"]}


def test_a_fleet_that_serves_is_well(fleet: Stack) -> None:
    """Its node is counted, and its models named."""
    code, checks = examined("--broker", fleet.clients)
    group = f"broker {fleet.clients}"

    assert code == 0
    assert checks[group, "reach"]["verdict"] == "ok"
    assert checks[group, "nodes"]["found"] == "1 of 1 ready"
    assert checks[group, "models"]["found"] == "mock, mock-classify, mock-embed, mock-rerank"


def test_each_broker_is_asked_by_itself(fleet: Stack, silent: str) -> None:
    """One that is there does not hide one that is not, and that one fails the command."""
    code, checks = examined("--broker", f"{fleet.clients},{silent}")

    assert code == 1
    assert checks[f"broker {fleet.clients}", "reach"]["verdict"] == "ok"
    assert checks[f"broker {silent}", "reach"]["verdict"] == "bad"
    assert "zmqrt up" in checks[f"broker {silent}", "reach"]["remedy"]


def test_a_broker_from_the_environment_is_named_too(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one from a flag or a file is."""
    monkeypatch.setenv("ZMQRT_BROKER", silent)
    code, checks = examined()

    assert code == 1
    assert checks[f"broker {silent}", "reach"]["verdict"] == "bad"


def test_an_endpoint_that_is_none_ends_nothing_else(fleet: Stack) -> None:
    """Its sentence stands among the others."""
    code, checks = examined("--broker", f"http://127.0.0.1:8000,{fleet.clients}")

    assert code == 1
    assert "HTTP address" in checks["broker http://127.0.0.1:8000", "reach"]["found"]
    assert checks[f"broker {fleet.clients}", "reach"]["verdict"] == "ok"


@pytest.mark.skipif(sys.platform == "win32", reason="modes mean nothing there")
def test_keys_that_others_may_read_are_bad(tmp_path: Path, fleet: Stack) -> None:
    """The command that is named mends it; that the broker has no keys is told beside it."""
    keys.generate(tmp_path / "fleet keys")
    secret = tmp_path / "fleet keys" / "client" / "secret.key"
    secret.chmod(0o644)
    words = ("--keys", str(tmp_path / "fleet keys"), "--broker", fleet.clients)
    code, checks = examined(*words)
    remedy = checks["keys", "client"]["remedy"]

    assert code == 1
    assert "uses no keys" in checks[f"broker {fleet.clients}", "reach"]["found"]
    assert remedy.startswith("run: chmod 600 ")
    subprocess.run(remedy.removeprefix("run: "), shell=True, check=True)
    assert examined(*words)[1]["keys", "client"]["verdict"] == "ok"


def test_people_read_it_without_colours(fleet: Stack) -> None:
    """Through a pipe: words for verdicts, a last line that sums up, nothing on standard error."""
    result = zmqrt("doctor", "--no-worker", "--broker", fleet.clients)

    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert f"broker {fleet.clients}" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1].startswith("Nothing is broken")


def test_the_default_broker_may_be_absent(silent: str) -> None:
    """Nobody named it."""
    settings = ClientSettings(broker=(silent,))

    assert [found.verdict for found in check_brokers(settings, are_named=False)] == ["note"]


def test_the_worker_part_looks_in_a_process_of_its_own() -> None:
    """One line of JSON, whatever libraries print while they are imported."""
    assert {found.name for found in check_worker()} >= {"GPUs", "torch", "model cache"}


@pytest.mark.slow
@pytest.mark.skipif("+cpu" not in metadata.version("torch"), reason="needs a torch for the CPU")
def test_a_torch_that_does_not_fit_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a driver that a stand-in plays."""
    for name, value in with_driver(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = {one.name: one for one in check_worker()}

    assert found["GPUs"].found == "NVIDIA H100 (80.0 GiB)"
    assert (found["torch"].verdict, found["compiler"].name) == ("bad", "compiler")
    assert found["torch"].remedy.endswith("--index-url https://download.pytorch.org/whl/cu126")


def test_a_report_that_hangs_or_fails_is_told() -> None:
    """A driver may never answer."""
    late = list(check_worker(patience_s=0.001))[-1]
    broken = list(check_worker(module="zmqrt.worker.nothing"))[-1]

    assert (late.verdict, late.found) == ("bad", "no answer within 0 s")
    assert (broken.name, broken.verdict) == ("report", "bad")
    assert "it ended with code 1: " in broken.found
    assert "No module named" in broken.found
    assert "zmqrt.worker.nothing" in broken.remedy
