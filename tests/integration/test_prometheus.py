"""IPv4 and IPv6: which one is used follows from what a name resolves to, never from how an endpoint is written."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.server import listen, ready_line
from zmqrt.broker.config import BrokerSettings
from zmqrt.broker.server import Server
from zmqrt.client import Client
from zmqrt.protocol import addresses, transport
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.worker.broker_link import BrokerLink, Ending


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


pytestmark = [pytest.mark.integration, pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")]
V4, V6 = "127.0.0.1", "::1"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let names stand for addresses, as /etc/hosts would; also for libzmq, which asks the same resolver."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        if host not in known:
            return real(host, port, *more, **options)
        return [one for address in known[host] for one in real(address, port, *more, **options)]

    def know(**given: Any) -> None:
        known.update({name.replace("_", "-"): value for name, value in given.items()})

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return know


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context of its own."""
    with transport.make_context() as context:
        yield context


def port_of(endpoint: str) -> int:
    """Return the port at its end."""
    return int(endpoint.rpartition(":")[2])


def accepts(address: str, port: int) -> bool:
    """Say whether somebody listens there."""
    try:
        socket.create_connection((address, port), 2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("endpoint", "addresses_", "where"),
    [
        ("tcp://*:0", {V4, V6}, "tcp://"),
        ("tcp://[::]:0", {V4, V6}, "tcp://[::]:"),
        ("tcp://0.0.0.0:0", {V4}, "tcp://0.0.0.0:"),
        ("tcp://[::1]:0", {V6}, "tcp://[::1]:"),
        ("tcp://127.0.0.1:0", {V4}, "tcp://127.0.0.1:"),
        ("tcp://only-new:0", {V6}, "tcp://[::1]:"),
        ("tcp://only-old:0", {V4}, "tcp://127.0.0.1:"),
        ("tcp://both:0", {V4, V6}, "tcp://127.0.0.1:"),
    ],
)
def test_a_broker_listens_in_every_family_that_its_endpoint_means(
    names: Callable[..., None],
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: str,
    addresses_: set[str],
    where: str,
) -> None:
    """`*` is both; a name is all that it resolves to, at one port."""
    names(only_new=[V6], only_old=[V4], both=[V6, V4])
    router, bound = transport.bind_frontend(context, endpoint)
    with router:
        port = port_of(bound)

        assert bound.startswith(where)
        assert {address for address in (V4, V6) if accepts(address, port)} == addresses_


def test_a_port_that_is_taken_in_one_family_is_an_error(
    names: Callable[..., None], context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """Half of a name is not enough."""
    names(both=[V4, V6])
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind((V6, 0))
        taken.listen()
        with pytest.raises(OSError, match="in use by another process"):
            transport.bind_frontend(context, f"tcp://both:{taken.getsockname()[1]}")


@pytest.mark.parametrize(("found", "listening"), [([V6], V6), ([V4], V4), ([V4, V6], V6), ([V6, V4], V4)])
def test_a_connection_takes_the_family_that_leads_somewhere(
    names: Callable[..., None], context: zmq.Context[zmq.Socket[bytes]], found: list[str], listening: str
) -> None:
    """By resolution; of two families, the one in which somebody listens."""
    names(broker=found)
    router, bound = transport.bind_frontend(context, f"tcp://{addresses.join_host(listening, 0)}")
    with router:
        assert addresses.resolve(f"tcp://broker:{port_of(bound)}") == bound


def test_a_name_without_any_address_harms_nobody(names: Callable[..., None]) -> None:
    """Nor does one that cannot be a name."""
    names(nothing=[])

    for host in ("nothing", "no-such-name.invalid", f"{'a' * 70}.invalid", "a\0b"):
        assert addresses.resolve(f"tcp://{host}:1") == f"tcp://{host}:1"


def test_a_resolver_that_takes_longer_than_a_try_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next try gets what an earlier one asked for, while it is under way and when it has come too late."""
    asked: list[str] = []
    may_answer = threading.Event()

    def slow(host: str) -> list[str]:
        asked.append(host)
        assert may_answer.wait(30)
        return [V4]

    monkeypatch.setattr(addresses, "addresses_of", slow)
    monkeypatch.setattr(addresses, "_LONG_S", 0.0)
    names, told = addresses.Resolver(), queue.Queue[tuple[int, str]]()
    names.look_up("tcp://broker:7", lambda at: told.put((1, at)))
    names.look_up("tcp://broker:7", lambda at: told.put((2, at)))
    may_answer.set()
    assert told.get(timeout=30) == (2, f"tcp://{V4}:7")
    names.look_up("tcp://broker:7", lambda at: told.put((3, at)))
    assert told.get(timeout=30) == (3, f"tcp://{V4}:7")

    assert (asked, told.empty()) == (["broker"], True)


@pytest.mark.parametrize("endpoint", ["tcp://[::1]:0", "tcp://localhost:0"])
def test_client_and_node_reach_a_broker_by_address_and_by_name(endpoint: str) -> None:
    """Through the library, and over the worker's link: looked up in a thread, joined when found."""

    async def meet() -> None:
        settings = BrokerSettings(clients=endpoint, workers=endpoint)
        server = Server(settings)
        ready = asyncio.Event()
        serving = asyncio.create_task(server.run(ready.set))
        await ready.wait()
        host = addresses.split_tcp(endpoint)[0]
        clients, workers = (
            f"tcp://{addresses.join_host(host, port_of(server.endpoints[name]))}" for name in ("clients", "workers")
        )

        def ask() -> str:
            with Client(clients) as client:
                return client.status().broker_id

        assert await asyncio.to_thread(ask) == settings.name
        with transport.make_context() as context:
            assert await first_event(context, workers) is None
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    async def first_event(context: zmq.Context[zmq.Socket[bytes]], workers: str) -> Ending | None:
        woken = asyncio.Event()
        link = BrokerLink(context, workers, keys=None, wake=woken.set)
        link.open()
        try:
            async with asyncio.timeout(20):
                while True:
                    await woken.wait()
                    woken.clear()
                    for event in link.events():
                        return event
        finally:
            link.close()

    asyncio.run(meet())


@pytest.mark.parametrize(
    ("host", "addresses_", "url"),
    [
        ("::", {V4, V6}, "http://[::]:"),
        ("[::1]", {V6}, "http://[::1]:"),
        ("::1", {V6}, "http://[::1]:"),
        ("0.0.0.0", {V4}, "http://0.0.0.0:"),
        ("both", {V4, V6}, "http://127.0.0.1:"),
        ("only-new", {V6}, "http://[::1]:"),
    ],
)
def test_a_bridge_listens_in_every_family_that_its_host_means(
    names: Callable[..., None], host: str, addresses_: set[str], url: str
) -> None:
    """At one port, also a free one; the ready line can be used as it is."""
    names(only_new=[V6], both=[V6, V4])
    settings = BridgeSettings(host=host, port=0)
    listeners = listen(settings)
    try:
        port = listeners[0].getsockname()[1]

        assert {address for address in (V4, V6) if accepts(address, port)} == addresses_
        assert f" at {url}{port} " in ready_line(settings, listeners[0])
    finally:
        for listener in listeners:
            listener.close()


# --- ipc:// ----------------------------------------------------------------------------------------------------------


def test_an_ipc_endpoint_replaces_nothing_but_a_dead_socket(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """A file, a folder, a link, a pipe stay as they are; so does the socket of a broker that lives."""
    file, folder, link, pipe = (tmp_path / name for name in ("file", "folder", "link", "pipe"))
    file.write_text("precious")
    folder.mkdir()
    link.symlink_to(file)
    os.mkfifo(pipe)
    for path in (file, folder, link, pipe):
        with pytest.raises(ConfigurationError, match="is there already and is no socket"):
            transport.bind_frontend(context, f"ipc://{path}")
    assert file.read_text() == "precious"
    assert link.is_symlink()

    endpoint = f"ipc://{tmp_path / 'broker'}"
    router, _ = transport.bind_frontend(context, endpoint)
    with router, pytest.raises(OSError, match="in use by another process"):
        transport.bind_frontend(context, endpoint)

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert stat.S_ISSOCK((tmp_path / "dead").stat().st_mode)
    router, bound = transport.bind_frontend(context, f"ipc://{tmp_path / 'dead'}")
    with router:
        assert bound == f"ipc://{tmp_path / 'dead'}"


@pytest.mark.parametrize(
    "endpoint",
    [
        *("tcp://::1:7555", "tcp://[127.0.0.1]:7555", "tcp://a b:1", "tcp://host", "tcp://:1", "udp://a:1", "a:1"),
        *("http://bridge:8000", "tcp://h:65536", "tcp://h:1\n", "ipc://", "", "tcp://h:"),
    ],
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    """An IPv6 address stands in brackets, and nothing else does."""
    with pytest.raises(ConfigurationError, match=r"tcp://127\.0\.0\.1:7555"):
        addresses.check_endpoint(endpoint)


def test_loopback_is_known_in_every_form() -> None:
    """What only looks like it is not."""
    for host in ("127.0.0.1", "127.8.8.8", "[::1]", "localhost", "LOCALHOST.", "a.localhost", "[::ffff:127.0.0.1]"):
        assert addresses.is_loopback(f"tcp://{host}:1"), host
    for host in ("*", "0.0.0.0", "[::]", "10.0.0.1", "localhost.example", "127.0.0.1.example", "[::ffff:10.0.0.1]"):
        assert not addresses.is_loopback(f"tcp://{host}:1"), host
