"""Why a broker cannot be used: every cause over real sockets, named within 5 s. And what a loss costs: nothing."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from support.client_core import units_of
from support.stack import eventually
from support.tiny_broker import TinyBroker, echo, final, partial, service, words_of
from zmqrt.client import CancelledError, Client, ConfigurationError, ConnectError, WorkerLostError
from zmqrt.protocol import codec, keys, transport
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Timing

pytestmark = pytest.mark.integration


def refusal(
    endpoint: str | list[str], *, key_folder: Path | None = None, insecure: bool = False, within_s: float = 4.5
) -> ConnectError:
    """Try to connect, and return the error that came in time."""
    started = time.monotonic()
    with pytest.raises(ConnectError) as caught, Client(endpoint, keys=key_folder, insecure=insecure):
        pass
    assert time.monotonic() - started < within_s
    return caught.value


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Give a context for the test's own sockets."""
    context = transport.make_context()
    yield context
    context.destroy(0)


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_nobody_listens() -> None:
    """The commonest case says what to start."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    error = refusal(endpoint, within_s=3.5)

    assert str(error) == f"nobody listens at {endpoint}; start one with `zmqrt up` or `zmqrt-broker`"
    assert error.exit_code == 69


def test_each_of_several_brokers_is_named() -> None:
    """With its own cause."""
    ports = [free_port(), free_port()]
    error = refusal([f"tcp://127.0.0.1:{port}" for port in ports])

    assert all(f"nobody listens at tcp://127.0.0.1:{port}" in str(error) for port in ports)


def test_an_unknown_host() -> None:
    """Its name is in the error."""
    assert "the name no-such-host.invalid cannot be resolved" in str(
        refusal("tcp://no-such-host.invalid:7555", insecure=True)
    )


def test_an_http_server() -> None:
    """The bridge's port instead of the broker's."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        error = refusal(f"tcp://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()

    assert 'is an HTTP server (it answered "HTTP/1.0 200 OK")' in str(error)
    assert error.exit_code == 69


def test_something_silent() -> None:
    """It accepts and never speaks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        error = refusal(f"tcp://127.0.0.1:{server.getsockname()[1]}")

    assert "accepts the connection but says nothing" in str(error)


def test_the_port_for_workers(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Where nobody answers clients, that is the likeliest reason."""
    backend, endpoint = transport.bind_backend(context, "tcp://127.0.0.1:0", timing=Timing())
    with backend:
        error = refusal(endpoint)

    assert "port for workers" in str(error)


OTHERS = {
    "another ZeroMQ program": ([b"hello"], "not ZRT"),
    "another version": ([b"ZR\x00\x00\x91\x93\xcd\x01\xaa\x02\x03"], "ZRT/2 to ZRT/3, this client ZRT/1"),
    "DISMISS, as to workers": (
        codec.pack([m.Dismiss(401, "unknown")])[0],
        "is the broker's port for workers",
    ),
}


@pytest.mark.parametrize(("answer", "words"), OTHERS.values(), ids=OTHERS)
def test_what_speaks_zeromq_and_is_no_broker_for_clients(
    context: zmq.Context[zmq.Socket[bytes]], answer: list[bytes], words: str
) -> None:
    """It is told by its first answer."""
    with context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def serve() -> None:
            head, *_ = router.recv_multipart()
            router.send_multipart([head, *answer])

        thread = threading.Thread(target=serve)
        thread.start()
        error = refusal(f"tcp://127.0.0.1:{port}", within_s=1.0)
        thread.join()

    assert words in str(error)


def test_a_key_is_missing_or_not_wanted(tmp_path: Path) -> None:
    """Both ways round, with exit code 77."""
    keys.generate(tmp_path)
    with TinyBroker(keys=keys.load_server(tmp_path)) as broker:
        without = refusal(broker.endpoint, within_s=2.0)
    with TinyBroker() as broker:
        needless = refusal(broker.endpoint, key_folder=tmp_path, within_s=2.0)

    assert "demands a key; pass `--keys DIR`" in str(without)
    assert "uses no keys, but this client does" in str(needless)
    assert (without.exit_code, needless.exit_code) == (77, 77)


def test_the_brokers_key_is_another(tmp_path: Path) -> None:
    """The client would talk to a stranger."""
    keys.generate(tmp_path / "mine")
    keys.generate(tmp_path / "theirs")
    with TinyBroker(keys=keys.load_server(tmp_path / "theirs")) as broker:
        error = refusal(broker.endpoint, key_folder=tmp_path / "mine", within_s=2.0)

    assert "the broker's public key here is probably not its own" in str(error)


def test_unsafe_or_senseless_addresses_are_refused_at_once() -> None:
    """Before any socket is made."""
    for endpoint, words in (
        ("tcp://10.0.0.1:7555", "reachable from other machines"),
        ("http://127.0.0.1:8000", "is an HTTP address"),
        ("localhost:7555", "is not an endpoint"),
        ("", "name 1 to 16 brokers"),
    ):
        with pytest.raises(ConfigurationError, match=words), Client(endpoint):
            pass


def test_a_broker_that_starts_late_is_found() -> None:
    """Whoever starts both together need not order them."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    client = Client(endpoint, connect_timeout_s=30.0)
    handle = client.submit("hi", model="toy")
    time.sleep(0.7)
    with TinyBroker(endpoint=endpoint):
        assert handle.result(30).text == "hi"
    client.close()


# --- losses ----------------------------------------------------------------------------------------------------------


def test_a_stream_goes_on_at_the_next_broker() -> None:
    """With the units that it has, and nobody sees the seam."""

    def half(request: m.Request) -> list[m.ToClient]:
        return [partial(request, i, [word]) for i, word in enumerate(words_of(request)[:3])]

    with (
        TinyBroker(echo, epoch=2) as second,
        TinyBroker(half) as first,
        Client([first.endpoint, second.endpoint]) as client,
    ):
        stream = client.stream("a b c d e f", model="toy")
        chunks = [next(stream) for _ in range(3)]
        first.stop()
        chunks += list(stream)

    assert "".join(chunk.text for chunk in chunks) == "a b c d e f"
    assert stream.result is not None
    assert stream.result.text == "a b c d e f"
    (again,) = second.requests()
    assert (again.resume_n, units_of(again.resume)) == (3, [0, 1, 2])


def test_everything_outstanding_survives_its_broker() -> None:
    """Two hundred requests, not one answered by the first."""
    with (
        TinyBroker(epoch=2) as second,
        TinyBroker(lambda _: []) as first,
        Client([first.endpoint, second.endpoint]) as client,
    ):
        handles = [client.submit(f"number {i}", model="toy") for i in range(200)]
        first.wait_for(m.Request, 200)
        first.stop()
        assert [handle.result(10).text for handle in handles] == [f"number {i}" for i in range(200)]


def test_what_must_not_run_twice_is_told_when_its_broker_dies() -> None:
    """Its outcome is unknown."""
    with (
        TinyBroker(epoch=2) as second,
        TinyBroker(lambda _: []) as first,
        Client([first.endpoint, second.endpoint]) as client,
    ):
        handle = client.submit("once", model="toy", idempotent=False)
        first.wait_for(m.Request)
        first.stop()
        with pytest.raises(WorkerLostError, match="outcome is unknown"):
            handle.result(10)
    assert second.requests() == []


def test_a_leaving_broker_finishes_and_the_next_takes_over() -> None:
    """GOAWAY: not one failed request."""

    def slowly(request: m.Request) -> list[m.ToClient]:
        threading.Timer(0.3, lambda: first.say(final(request, words_of(request)))).start()
        return []

    with (
        TinyBroker(epoch=2) as second,
        TinyBroker(slowly) as first,
        Client([first.endpoint, second.endpoint]) as client,
    ):
        old = client.submit("old", model="toy")
        first.wait_for(m.Request)
        first.say(m.Goaway("drain", 5000))
        time.sleep(0.1)
        assert client.infer("new", model="toy").text == "new"
        assert old.result(5).text == "old"
        first.wait_for(m.Bye)

    assert [one.rid for one in first.requests()] == [old.rid]


def test_the_services_are_asked_again_at_the_next_broker() -> None:
    """Another broker may have other models."""
    with (
        TinyBroker(epoch=2, services=[service("other")]) as second,
        TinyBroker() as first,
        Client([first.endpoint, second.endpoint]) as client,
    ):
        assert client.infer("hi").model == "toy"
        first.stop()
        eventually(lambda: client.endpoint != first.endpoint, what="the loss, to be seen")
        assert client.infer("hi").model == "other"


# --- processes -------------------------------------------------------------------------------------------------------


def run_child(code: str, endpoint: str, *, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run a program that uses the client."""
    program = f"from zmqrt.client import *\nENDPOINT = {endpoint!r}\n" + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_a_program_that_ends_without_close_does_not_hang() -> None:
    """Not even with requests under way; the broker is told goodbye."""
    with TinyBroker(lambda _: []) as broker:
        started = time.monotonic()
        done = run_child(
            """
            client = Client(ENDPOINT)
            handle = client.submit("hi", model="toy")
            client.connect()
            """,
            broker.endpoint,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert time.monotonic() - started < 10
        broker.wait_for(m.Bye)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_client_from_before_a_fork_says_so() -> None:
    """In the child only; the parent's goes on."""
    with TinyBroker() as broker:
        done = run_child(
            """
            import os
            client = Client(ENDPOINT)
            client.infer("warm", model="toy")
            pid = os.fork()
            if pid == 0:
                try:
                    client.infer("child", model="toy")
                except CancelledError as error:
                    print(error, flush=True)
                with Client(ENDPOINT) as own:
                    print(own.infer("own", model="toy").text, flush=True)
                raise SystemExit(0)
            assert os.waitpid(pid, 0)[1] == 0
            print(client.infer("parent", model="toy").text)
            """,
            broker.endpoint,
        )
    assert done.stderr == ""
    assert "made before a fork; make a new client in the child process" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["own", "parent"]


@pytest.mark.skipif(sys.platform == "win32", reason="a child cannot be sent Ctrl-C alone")
def test_ctrl_c_interrupts_a_waiting_call() -> None:
    """And the request is cancelled."""
    with TinyBroker(lambda _: []) as broker:
        program = f"from zmqrt.client import Client\nClient({broker.endpoint!r}).infer('hi', model='toy')"
        child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
        broker.wait_for(m.Request)
        os.kill(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=10)

        assert "KeyboardInterrupt" in said
        broker.wait_for(m.Cancel)


def test_a_closed_client_stays_closed() -> None:
    """It says so instead of waiting."""
    client = Client(f"tcp://127.0.0.1:{free_port()}")
    client.close()
    with pytest.raises(CancelledError, match="it was closed"):
        client.connect()
