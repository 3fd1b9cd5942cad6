"""What a look at an endpoint says, when no handshake came about: real sockets."""

import contextlib
import socket
import threading
from collections.abc import Generator, Iterator

import pytest
import zmq

from zmqrt.protocol import transport
from zmqrt.protocol.diagnose import probe
from zmqrt.protocol.keys import KeyPair

pytestmark = pytest.mark.integration


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context of its own."""
    with transport.make_context() as context:
        yield context


def bind(context: zmq.Context[zmq.Socket[bytes]], *, keyed: bool) -> tuple[zmq.Socket[bytes], str]:
    """Bind what a broker binds for clients."""
    keys = KeyPair(*zmq.curve_keypair()) if keyed else None
    return transport.bind_frontend(context, "tcp://127.0.0.1:0", keys=keys)


def test_a_broker_with_keys_is_recognised_every_time(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """The monitor's event for it is a race between its greeting and its hanging up; the look is none."""
    router, endpoint = bind(context, keyed=True)
    with router:
        seen = {probe(endpoint, has_keys=False, broke_off=True) for _ in range(50)}

    (failure,) = seen
    assert failure.not_authorised
    assert failure.is_final
    assert "demands a key; pass `--keys DIR`" in failure.text


def test_a_broker_without_keys_is_recognised_by_a_client_that_has_some(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """It would send in the clear what is expected encrypted."""
    router, endpoint = bind(context, keyed=False)
    with router:
        failure = probe(endpoint, has_keys=True, broke_off=True)

    assert failure.not_authorised
    assert "uses no keys, but this client does" in failure.text


@pytest.mark.parametrize("keyed", [False, True])
def test_where_keys_are_not_the_cause_nothing_is_said_of_them(
    context: zmq.Context[zmq.Socket[bytes]], *, keyed: bool
) -> None:
    """Both sides agree, and the handshake never ended; so it was too slow."""
    router, endpoint = bind(context, keyed=keyed)
    with router:
        failure = probe(endpoint, has_keys=keyed, broke_off=False)

    assert not failure.not_authorised
    assert "overloaded" in failure.text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "is an HTTP server"),
        (b"-ERR unknown command\r\n", 'it answered "-ERR unknown command"'),
        (b"", "accepts the connection but says nothing"),
    ],
)
def test_other_servers_are_told_apart(answer: bytes, words: str) -> None:
    """By what they answer to a line of HTTP."""
    with serving(answer) as port:
        failure = probe(f"tcp://127.0.0.1:{port}", has_keys=False, broke_off=False)

    assert words in failure.text


@contextlib.contextmanager
def serving(answer: bytes) -> Generator[int]:
    """Answer each line with the same bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer, args=(server, answer))
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)  # ends accept
        thread.join()


def _answer(server: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                if connection.recv(100):
                    connection.sendall(answer)
