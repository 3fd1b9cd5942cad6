"""A node that cannot use its broker says why in the words that a client has for it, once, and tries on."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.stack import eventually
from zmqrt.client import Client
from zmqrt.client.cli.main import main
from zmqrt.protocol.errors import ConnectError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@contextmanager
def program(module: str, *words: str) -> Generator[Callable[[str], str]]:
    """Run a role; what it gives is a wait for a line that holds some words."""
    command = [sys.executable, "-m", f"zmqrt.{module}", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as popen:
        said: queue.SimpleQueue[str] = queue.SimpleQueue()
        heard: list[str] = []
        assert popen.stdout is not None
        lines = popen.stdout

        def read() -> None:
            for line in lines:
                said.put(line)

        threading.Thread(target=read, daemon=True).start()

        def until(words: str) -> str:
            give_up_at = time.monotonic() + 60
            while time.monotonic() < give_up_at:
                try:
                    heard.append(said.get(timeout=1.0))
                except queue.Empty:
                    continue
                if words in heard[-1]:
                    return heard[-1]
            raise AssertionError(f"{words!r} was not said, but:\n{''.join(heard)}")

        try:
            yield until
        finally:
            popen.kill()


@contextmanager
def broker(*words: str) -> Generator[tuple[str, str]]:
    """Run a broker; give its port for clients and that for workers."""
    ports = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
    with program("broker", *ports, *words) as until:
        line = until("zmqrt-broker ready")
        clients, workers = (one.rpartition(" ")[2].strip() for one in line.split(","))
        yield clients, workers


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a fleet."""
    folder = tmp_path_factory.mktemp("keys") / "fleet"
    assert main(["keygen", str(folder)]) == 0
    return folder


def node(endpoint: str, *words: str) -> tuple[str, ...]:
    """Return what a worker is started with."""
    return ("worker", "--engine", "mock", "--devices", "0", "--broker", endpoint, *words)


def test_a_node_tells_keys_and_ports_as_a_client_does(keys: Path, tmp_path: Path) -> None:
    """Keyless at a keyed broker, with another broker's key, keyed at a keyless one, and at the port of the clients."""
    assert main(["keygen", str(tmp_path / "others")]) == 0
    with (
        broker("--keys", str(keys)) as (_, keyed),
        broker() as (clients, keyless),
        program(*node(keyed)) as without,
        program(*node(keyed, "--keys", str(tmp_path / "others"))) as mistaken,
        program(*node(keyless, "--keys", str(keys))) as needless,
        program(*node(clients)) as astray,
    ):
        assert "demands a key; pass `--keys DIR`" in without(keyed)
        assert "the broker's public key here is probably not its own" in mistaken(keyed)
        assert "uses no keys, but this worker does" in needless(keyless)
        assert "port for clients; workers connect to the other one (7556" in astray(clients)


def test_a_node_tells_other_servers_and_nobody() -> None:
    """An HTTP server, an empty port, a name that means nothing."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"tcp://127.0.0.1:{gone.getsockname()[1]}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        program(*node(f"tcp://127.0.0.1:{server.getsockname()[1]}")) as at_http,
        program(*node(nobody)) as at_nobody,
        program(*node("tcp://no-such-host.invalid:7556", "--insecure")) as at_no_name,
    ):
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        assert "Workers use 7556" in at_http("is an HTTP server")
        assert "start one with `zmqrt up`" in at_nobody("nobody listens at")
        at_no_name("the name no-such-host.invalid cannot be resolved")


def _serve(server: socket.socket) -> None:
    try:
        while True:
            connection, _ = server.accept()
            with connection:
                if connection.recv(4096).startswith(b"GET"):
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
    except OSError:
        pass


def test_health_names_the_broker_that_is_tried() -> None:
    """A wrong address is seen at once, with the cause."""
    pytest.importorskip("starlette")
    import urllib.error
    import urllib.request

    with program("bridge_http", "--port", "0", "--broker", "tcp://127.0.0.1:1") as until:
        line = until("http://")
        url = next(word.strip(" ,;\n") for word in line.split() if word.startswith("http://"))

        def health() -> str | None:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=10).close()
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read().decode()
                return said if "nobody listens at" in said else None
            return None

        assert "tcp://127.0.0.1:1" in eventually(health, what="the cause")


def test_a_client_at_the_port_of_nodes_is_told_so() -> None:
    """The other way round."""
    with broker() as (_, workers), pytest.raises(ConnectError, match="port for workers"):
        Client(workers).connect()
