"""A broker with keys, and who is up to no good: listens on the way, says again what others said, floods, is silent."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from support import raw_zmtp
from support.raw_zmtp import RawPeer
from support.recording_relay import RecordingRelay
from support.stack import Stack, eventually
from zmqrt.broker import sockets
from zmqrt.broker.core import Side
from zmqrt.broker.sockets import RouterSocket
from zmqrt.client import Client
from zmqrt.protocol import codec, keys, transport
from zmqrt.protocol.snapshot import Snapshot

pytestmark = pytest.mark.integration
PROMPT = "the secret of the lighthouse keeper"
ROUNDS = 4
CALLS = 150
STRANGERS = 1_000
STORM = 2_000
FLOOD = """
import os, socket, sys, time
from zmqrt.protocol import keys, transport
from zmqrt.protocol.descriptors import raise_limit

raise_limit()
os.nice(19)  # its machine is another one
host, port = sys.argv[1].removeprefix("tcp://").rsplit(":", 1)
context = transport.make_context()
server = sys.argv[2].encode()
held = []
print("ready", flush=True)
for line in sys.stdin:
    for number in range(int(line)):
        kind = number % 4
        if kind == 0:  # a key of nobody
            dealer = transport.make_dealer(context, keys=keys.PeerKeys(keys.new_pair(), server))
            transport.connect(dealer, sys.argv[1])
            held.append(dealer)
        else:  # garbage, a greeting and nothing more, nothing at all
            peer = socket.create_connection((host, int(port)))
            peer.sendall((os.urandom(64), b"\\xff" + bytes(8) + b"\\x7f\\x03\\x01CURVE" + bytes(47), b"")[kind - 1])
            held.append(peer)
        if number % 50 == 49:
            time.sleep(0.1)
    print("done", flush=True)
    for each in held:
        each.close()
    held.clear()
"""
STORMY = """
import sys, time
import zmq
from pathlib import Path
from zmqrt.protocol import codec, keys, messages as m, transport
from zmqrt.protocol.descriptors import raise_limit

raise_limit()
context = transport.make_context()
own = keys.load_peer(Path(sys.argv[2]), "client")
count = int(sys.argv[3])
hello = codec.pack([m.Hello(bytes(16), 1, 1)])[0]
for line in sys.stdin:
    poller, waiting, again = zmq.Poller(), {}, 0
    give_up_at = time.monotonic() + 120

    def begin():
        dealer = transport.make_dealer(context, keys=own)
        transport.connect(dealer, sys.argv[1])
        waiting[dealer] = (False, time.monotonic() + 20)
        poller.register(dealer, zmq.POLLOUT)

    began = time.monotonic()
    for _ in range(count):
        begin()
    welcome = []
    while waiting and time.monotonic() < give_up_at:
        for dealer, _ in poller.poll(1000):
            said, until = waiting[dealer]
            if not said:
                transport.send(dealer, hello)
                waiting[dealer] = (True, until)
                poller.register(dealer, zmq.POLLIN)
            else:
                messages = codec.TO_CLIENT.unpack(transport.receive(dealer)).messages
                assert any(isinstance(message, m.Welcome) for message in messages), messages
                poller.unregister(dealer)
                del waiting[dealer]
                welcome.append(dealer)
        for dealer in [dealer for dealer, (_, until) in waiting.items() if time.monotonic() > until]:
            poller.unregister(dealer)
            del waiting[dealer]
            dealer.close(0)
            again += 1
            begin()
    print(len(welcome), again, f"{time.monotonic() - began:.1f}", flush=True)
    for dealer in welcome:
        dealer.close(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a fleet's keys."""
    made = tmp_path_factory.mktemp("keys") / "fleet"
    keys.generate(made)
    return made


@pytest.fixture(scope="module")
def keyed(folder: Path) -> Iterator[Stack]:
    """Run a broker and a node that use them."""
    with Stack() as stack:
        stack.broker("--keys", str(folder))
        stack.worker("--keys", str(folder))
        with Client(stack.clients, keys=folder, timeout_s=60) as client:
            eventually(lambda: client.models() and client.models()[0].nodes, what="a node")
        yield stack


def status(stack: Stack, folder: Path) -> Snapshot:
    """Ask as the admin."""
    with Client(stack.clients, keys=folder, as_admin=True) as client:
        return client.status()


@contextlib.contextmanager
def program(code: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run a program that is told what to do by lines."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], line: str) -> str:
    """Say something and wait for what it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_who_listens_on_the_way_sees_no_text_and_can_say_nothing_again(keyed: Stack, folder: Path) -> None:
    """Neither prompt, nor answer, nor name of the model; what was recorded opens no session."""
    with RecordingRelay(keyed.clients) as relay:
        with Client(relay.endpoint, keys=folder) as client:
            text = client.infer(PROMPT, max_tokens=40, ignore_eos=True, model="mock").text
        sent, received = bytes(relay.sent), bytes(relay.received)
    before = status(keyed, folder).counters
    with RawPeer(keyed.clients) as thief:
        assert thief.send(sent).is_cut()

    assert len(text) > 20
    for words in (PROMPT.encode(), text[:20].encode(), b"mock"):
        assert words not in sent + received
    with Client(keyed.clients, keys=folder, as_admin=True) as client:
        client.infer("hi", max_tokens=1, model="mock")
        after = eventually(
            lambda: found if (found := client.status().counters)["requests"] > before["requests"] else None,
            what="a status of afterwards",
        )
    assert after["requests"] == before["requests"] + 1
    assert after["sessions_opened"] == before["sessions_opened"] + 1


def test_the_same_ear_hears_everything_where_there_are_no_keys() -> None:
    """So the test above would notice."""
    with Stack() as stack:
        stack.broker()
        with RecordingRelay(stack.clients) as relay:
            with Client(relay.endpoint, timeout_s=0.5) as client, contextlib.suppress(Exception):
                client.infer(PROMPT, model="nobody-has-it")
            assert PROMPT.encode() in relay.sent


@pytest.mark.parametrize(
    "words", [os.urandom(200), raw_zmtp.greeting(), raw_zmtp.greeting(mechanism=b"PLAIN"), b"GET /"]
)
def test_who_speaks_another_language_is_cut_off(keyed: Stack, folder: Path, words: bytes) -> None:
    """Garbage, no security, another security, HTTP: at both ports, and the broker has no fault of its own."""
    for endpoint in (keyed.clients, keyed.workers):
        with RawPeer(endpoint) as raw:
            assert raw.send(words.ljust(64, b"\0")).is_cut()

    assert status(keyed, folder).counters["internal_errors"] == 0


def test_of_connections_without_a_session_the_oldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens them and says nothing pushes out his own; one with a session stays."""
    monkeypatch.setattr(sockets, "MAX_HALF_OPEN", 3)
    context = transport.make_context()
    socket, endpoint = transport.bind_frontend(context, "tcp://127.0.0.1:0")
    router = RouterSocket(Side.CLIENTS, socket, codec.FROM_CLIENT, with_user=False)
    with contextlib.ExitStack() as held, RawPeer(endpoint) as good:
        good.handshake().send(raw_zmtp.frame(b"hello"))
        peer, key, fd, _ = eventually(router.receive, what="an envelope")
        router.broken()
        router.note(peer, fd, key)
        peers = [held.enter_context(RawPeer(endpoint)).handshake() for _ in range(5)]
        eventually(lambda: router.broken() or router.half_open_cut == 2, what="the end of two")

        assert [peer.is_cut() for peer in peers[:2]] == [True, True]
        assert not good.is_cut(0.01)
        assert not peers[4].is_cut(0.01)
    router.close(0)
    context.term()


@pytest.mark.slow
def test_a_flood_of_strangers_keeps_nobody_waiting(keyed: Stack, folder: Path) -> None:
    """A thousand with wrong keys, garbage, half a greeting or nothing: p99 of a good client within 1.5 times."""
    calm: list[float] = []
    stormy: list[float] = []
    with (
        Client(keyed.clients, keys=folder) as client,
        program(FLOOD, keyed.clients, keys.load_server(folder).public.decode()) as flood,
    ):
        assert flood.stdin is not None
        assert flood.stdout is not None
        assert flood.stdout.readline() == "ready\n"
        for _ in range(ROUNDS):
            calm += times(client)
            flood.stdin.write(f"{STRANGERS}\n")
            flood.stdin.flush()
            stormy += times(client)
            assert flood.stdout.readline() == "done\n"
    found = status(keyed, folder)

    refused = found.tallies["zap_refused"]
    assert refused["unlisted"] + refused["too_often"] >= ROUNDS * STRANGERS // 4 - 50
    assert refused["too_often"] > refused["unlisted"] > 0
    assert any(event.kind == "key_refused" and event.subject == "127.0.0.1" for event in found.events)
    assert found.counters["internal_errors"] == 0
    print(f"p99: {p99(calm) * 1000:.1f} ms calm, {p99(stormy) * 1000:.1f} ms in a flood")
    assert p99(stormy) <= 1.5 * p99(calm)


def times(client: Client) -> list[float]:
    """Ask again and again; return how long each took."""
    found: list[float] = []
    for _ in range(CALLS):
        began = time.perf_counter()
        client.infer("hi", max_tokens=2, ignore_eos=True)
        found.append(time.perf_counter() - began)
    return found


def p99(seconds: list[float]) -> float:
    """Return what one in a hundred is above."""
    return sorted(seconds)[len(seconds) * 99 // 100]


@pytest.mark.slow
def test_two_thousand_clients_that_come_back_at_once_are_all_welcome(folder: Path) -> None:
    """With keys; and again at the broker that is started in its place."""
    with Stack() as stack:
        broker = stack.broker("--keys", str(folder), "--io-threads", "2")
        with program(STORMY, stack.clients, str(folder), str(STORM)) as storm:
            first = tell(storm, "go").split()
            broker.kill()
            stack.again(broker)
            second = tell(storm, "go").split()
        print(f"welcome, tried again, seconds: {first}, {second}")

        assert int(first[0]) == int(second[0]) == STORM
        assert status(stack, folder).counters["internal_errors"] == 0
