"""Keys: whoever is listed gets in, everybody else is told why, at once; without keys nothing leaves loopback."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import Stack, start
from zmqrt.client import Client, ConnectError
from zmqrt.protocol import keys

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def fleet_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a fleet's keys."""
    made = tmp_path_factory.mktemp("keys") / "fleet"
    keys.generate(made)
    return made


@pytest.fixture(scope="module")
def keyed(fleet_keys: Path) -> Iterator[Stack]:
    """Run a broker and a node that use them."""
    with Stack() as stack:
        stack.broker("--keys", str(fleet_keys))
        stack.worker("--keys", str(fleet_keys), node_id="keyed")
        with Client(stack.clients, keys=fleet_keys, timeout_s=60) as client:
            while not client.models() or not client.models()[0].nodes:
                time.sleep(0.05)
        yield stack


def refusal(endpoint: str, directory: Path | None) -> ConnectError:
    """Connect, be refused within five seconds, return the reason."""
    started = time.monotonic()
    with pytest.raises(ConnectError) as caught, Client(endpoint, keys=directory):
        pass
    assert time.monotonic() - started < 5.5
    return caught.value


def test_a_listed_client_is_served(keyed: Stack, fleet_keys: Path) -> None:
    """Worker and client of the fleet meet."""
    with Client(keyed.clients, keys=fleet_keys) as client:
        result = client.infer("hi", max_tokens=4, model="mock", ignore_eos=True)

    assert len(result.token_ids) == 4


def test_a_client_without_keys_is_told(keyed: Stack) -> None:
    """The broker has keys, the client has none."""
    error = refusal(keyed.clients, None)

    assert error.not_authorised
    assert "--keys" in str(error)


def test_a_client_with_an_unlisted_key_is_told(keyed: Stack, fleet_keys: Path, tmp_path: Path) -> None:
    """A key of another fleet, though it knows this broker's public key."""
    keys.generate(tmp_path)
    (tmp_path / "broker" / "public.key").write_bytes((fleet_keys / "broker" / "public.key").read_bytes())

    error = refusal(keyed.clients, tmp_path)

    assert error.not_authorised
    assert "authorized_clients" in str(error)


def test_a_client_that_expects_another_broker_is_told(keyed: Stack, tmp_path: Path) -> None:
    """Everything is of another fleet."""
    keys.generate(tmp_path)

    error = refusal(keyed.clients, tmp_path)

    assert error.not_authorised
    assert "public" in str(error)


def test_a_clients_key_does_not_open_the_worker_port(keyed: Stack, fleet_keys: Path) -> None:
    """Each socket has its own list."""
    error = refusal(keyed.workers, fleet_keys)

    assert error.not_authorised


@pytest.mark.parametrize("flag", ["--clients", "--workers"])
def test_off_loopback_without_keys_is_refused(flag: str) -> None:
    """Exit 78, the reason, the remedy."""
    broker = start("broker", flag, "tcp://0.0.0.0:0", wait=False)

    assert broker.wait() == 78
    assert "zmqrt keygen" in broker.output()


def test_a_client_off_loopback_without_keys_is_refused() -> None:
    """The same rule for whoever connects."""
    command = [sys.executable, "-m", "zmqrt.client.cli", "infer", "hi", "--broker", "tcp://192.0.2.1:7555"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert ended.returncode == 78
    assert "zmqrt keygen" in ended.stderr
