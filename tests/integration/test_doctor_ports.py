"""Who is at a port, by what it says: real sockets."""

import contextlib
import socket
import threading
from collections.abc import Generator

import pytest

from zmqrt.client.cli.doctor import PortHolder, port_holder
from zmqrt.protocol import transport

pytestmark = pytest.mark.integration

OF_A_BRIDGE = b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"status":"no_nodes","ready":false,"detail":"x","devices":0}'
OF_ANOTHER = b"HTTP/1.1 404 Not Found\r\n\r\n<html>"


@contextlib.contextmanager
def serving(answer: bytes) -> Generator[int]:
    """Answer one caller, who speaks first."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer, args=(server, answer))
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def _answer(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        if connection.recv(1000):
            connection.sendall(answer)


@pytest.mark.parametrize(
    ("answer", "holder"), [(OF_A_BRIDGE, "a bridge"), (OF_ANOTHER, "another program"), (b"", "another program")]
)
def test_a_bridge_is_told_from_other_servers(answer: bytes, holder: PortHolder) -> None:
    """Also where it has no broker, and says so."""
    with serving(answer) as port:
        assert port_holder(port) == holder


def test_a_broker_greets_first() -> None:
    """With or without peers."""
    with transport.make_context() as context:
        router, endpoint = transport.bind_frontend(context, "tcp://127.0.0.1:0")
        with router:
            found = port_holder(int(endpoint.rpartition(":")[2]))

    assert found == "a broker"


def test_nobody_is_nobody() -> None:
    """A port that is ours, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))

        assert port_holder(taken.getsockname()[1]) == "nobody"
