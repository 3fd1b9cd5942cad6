"""A broker with keys and peers without the right ones; and what happens when nobody can say whose key is right."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from support import raw_zmtp
from support.raw_zmtp import RawPeer
from support.stack import Stack, eventually, start
from zmqrt.client import Client, ConnectError
from zmqrt.protocol import keys, transport
from zmqrt.protocol.errors import EXIT_FAILED
from zmqrt.protocol.keys import PeerKeys

pytestmark = pytest.mark.integration
EACH = 15
MOST_GROWTH = 48 << 20
WAIT_MS = 20_000
IN = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
OUT = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
SABOTAGE = """
    import os, time
    from zmqrt.broker.auth import Gate

    answer = Gate._answer

    def sabotaged(self, question):
        if os.path.exists(os.environ["GATE_DIES"]):
            raise RuntimeError("told to die")
        while os.path.exists(os.environ["GATE_HANGS"]):
            time.sleep(0.05)
        answer(self, question)

    Gate._answer = sabotaged
"""
"""Python imports `sitecustomize` by itself: the broker is started as always, and its gate breaks on a sign."""


@dataclass
class Keyed:
    """A broker and a node that use keys, and the files that break the broker's gate when they are there."""

    stack: Stack
    folder: Path
    dies: Path
    hangs: Path

    def client(self, **options: float) -> Client:
        """Make a client whose key is listed."""
        return Client(self.stack.clients, keys=self.folder, **options)  # type: ignore[arg-type]

    def is_alive(self) -> bool:
        """Say whether the broker runs."""
        return self.stack.processes[0].popen.poll() is None


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Keyed]:
    """Run them."""
    folder, tricks = tmp_path / "keys", tmp_path / "tricks"
    keys.generate(folder)
    tricks.mkdir()
    (tricks / "sitecustomize.py").write_text(textwrap.dedent(SABOTAGE))
    made = Keyed(Stack(), folder, tricks / "dies", tricks / "hangs")
    path = os.pathsep.join([str(tricks), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "GATE_DIES": str(made.dies), "GATE_HANGS": str(made.hangs)}
    ports = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
    with made.stack as stack:
        stack.processes.append(start("broker", "--keys", str(folder), *ports, env=env))
        stack.clients, stack.workers = (stack.processes[0].endpoints[port] for port in ("clients", "workers"))
        stack.worker("--keys", str(folder))
        with made.client(timeout_s=60) as client:
            eventually(lambda: client.models() and client.models()[0].nodes, what="a node")
        yield made


def ask(client: Client) -> None:
    """Ask for something."""
    assert client.infer("hi", max_tokens=2, ignore_eos=True, model="mock").usage.completion_tokens == 2


def is_let_in(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, own: PeerKeys | None) -> bool:
    """Try the handshake of ZeroMQ once, and say how it ends."""
    dealer = transport.make_dealer(context, keys=own)
    monitor = transport.monitor(dealer)
    try:
        transport.connect(dealer, endpoint)
        while monitor.poll(WAIT_MS):
            event = recv_monitor_message(monitor)["event"]
            if event & (IN | OUT):
                return bool(event & IN)
        raise AssertionError("the handshake did not end")
    finally:
        dealer.disable_monitor()
        monitor.close(0)
        dealer.close(0)


def test_many_without_the_right_key_keep_nobody_waiting(keyed: Keyed, tmp_path: Path) -> None:
    """No key, one that is not listed, one for another broker, one of the other port: all out, and others are served."""
    own = keys.load_peer(keyed.folder, "client")
    keys.generate(tmp_path / "other")
    other = keys.load_peer(tmp_path / "other", "client")
    kinds = [None, PeerKeys(other.own, own.server_public), PeerKeys(own.own, other.server_public), other]
    kinds.append(keys.load_peer(keyed.folder, "worker"))
    process = psutil.Process(keyed.stack.processes[0].pid)
    context = transport.make_context()
    with keyed.client() as client:
        ask(client)
        before = process.memory_info().rss
        for _ in range(EACH):
            assert not any(is_let_in(context, keyed.stack.clients, kind) for kind in kinds)
            with RawPeer(keyed.stack.workers) as raw:
                assert raw.send(raw_zmtp.greeting()).is_cut()
            ask(client)

        assert is_let_in(context, keyed.stack.clients, own)
        assert client.status().counters["internal_errors"] == 0
    context.term()
    assert keyed.is_alive()
    assert process.memory_info().rss - before < MOST_GROWTH


def test_nobody_gets_in_while_the_gate_hangs(keyed: Keyed) -> None:
    """Not even with the right key; whoever is in is served, and afterwards the door is open again."""
    with keyed.client() as client:
        keyed.hangs.touch()
        with pytest.raises(ConnectError), keyed.client(connect_timeout_s=2):
            pass
        ask(client)
        keyed.hangs.unlink()

        with keyed.client() as late:
            ask(late)
    assert keyed.is_alive()


def test_a_broker_whose_gate_has_died_ends_and_says_why(keyed: Keyed) -> None:
    """It cannot tell friend from foe any more: one that goes on would look well, and take nobody."""
    broker = keyed.stack.processes[0]
    with keyed.client() as client:
        ask(client)
        keyed.dies.touch()
        with pytest.raises(ConnectError), keyed.client(connect_timeout_s=2):
            pass

        assert broker.wait() == EXIT_FAILED
        assert "told to die" in broker.output()
        assert "nobody could say any more who may connect, so this broker ends" in broker.output()
