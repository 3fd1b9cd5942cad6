"""Lists of keys while a broker runs: who is added gets in, who is revoked or expires is out, with what it has open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from support.stack import Stack, eventually
from zmqrt.client import Client, ConnectError
from zmqrt.client.cli.main import cli
from zmqrt.protocol import authorized_keys as lists
from zmqrt.protocol import keys
from zmqrt.protocol.authorized_keys import Principal
from zmqrt.protocol.errors import RequestError
from zmqrt.protocol.snapshot import Snapshot

pytestmark = pytest.mark.integration
LONG = 1_000_000


@dataclass
class Fleet:
    """A broker with keys and two nodes, each under a line of its own."""

    stack: Stack
    folder: Path

    def invite(self, role: str, name: str, *words: str) -> str:
        """Make a line."""
        endpoint = self.stack.workers if role == "worker" else self.stack.clients
        given = ["invite", role, "--name", name, "--address", endpoint, *words]
        result = CliRunner().invoke(cli, ["keys", "fleet", *given, "--keys", str(self.folder)])
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def revoke(self, name: str) -> None:
        """Shut somebody out."""
        result = CliRunner().invoke(cli, ["keys", "fleet", "revoke", name, "--keys", str(self.folder)])
        assert result.exit_code == 0, result.output

    def client(self, line: str) -> Client:
        """Make a client that joins; it is let in as soon as the broker has read the list."""

        def let_in() -> Client | None:
            client = Client(join=line, timeout_s=60)
            try:
                client.status()
            except ConnectError:
                client.close()
                return None
            return client

        return eventually(let_in, what="a new key to be let in")

    def status(self) -> Snapshot:
        """Ask as the admin."""
        with Client(self.stack.clients, keys=self.folder, as_admin=True) as client:
            return client.status()

    def refusals(self) -> dict[str, int]:
        """Return how many were not let in, by reason."""
        return self.status().tallies["zap_refused"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run it."""
    folder = tmp_path_factory.mktemp("keys") / "fleet"
    keys.generate(folder)
    with Stack() as stack:
        stack.broker("--keys", str(folder))
        made = Fleet(stack, folder)
        for name in ("one", "two"):
            stack.worker("--join-file", str(line_file(folder.parent / name, made.invite("worker", name))), node_id=name)
        eventually(lambda: len([node for node in made.status().nodes if node.phase == "ready"]) == 2, what="two nodes")
        yield made


def line_file(path: Path, line: str) -> Path:
    """Keep a line for its owner alone."""
    path.touch(mode=0o600)
    path.write_text(line)
    return path


def test_a_revoked_key_ends_its_streams_with_the_reason_and_nobody_elses(fleet: Fleet) -> None:
    """And its client is refused when it comes back; another client does not notice."""
    mine, theirs = fleet.client(fleet.invite("client", "mine")), fleet.client(fleet.invite("client", "theirs"))
    with mine, theirs:
        stream = mine.stream("hi", max_tokens=LONG, ignore_eos=True)
        other = theirs.stream("hi", max_tokens=LONG, ignore_eos=True)
        next(iter(stream))
        fleet.revoke("mine")

        with pytest.raises(RequestError, match=r"the key of mine was revoked \(20"):
            for _ in stream:
                pass
        with pytest.raises(ConnectError, match="does not allow this client's key"):
            mine.status()
        next(iter(other))
        other.cancel()
    found = fleet.status()
    assert any(event.kind == "key_ended" and "the key of mine was revoked" in event.text for event in found.events)
    eventually(lambda: fleet.refusals()["revoked"], what="a refusal that is counted")


def test_what_a_node_ran_goes_on_elsewhere_when_its_key_is_revoked(fleet: Fleet) -> None:
    """It is sent away at once, and its client sees one answer; listed again, it is back by itself."""
    with Client(fleet.stack.clients, keys=fleet.folder, timeout_s=60) as client:
        streams = [client.stream("hi", max_tokens=LONG, ignore_eos=True) for _ in range(4)]
        readers = [iter(stream) for stream in streams]
        for reader in readers:
            next(reader)
        fleet.revoke("one")

        eventually(lambda: [node.node_id for node in fleet.status().nodes] == ["two"], what="the end of node one")
        for reader in readers:
            next(reader)
        for stream in streams:
            stream.cancel()
    said = "dismissed this node: 403 the key of one was revoked"
    eventually(lambda: said in fleet.stack.node("one").output(), what="the reason in its log")
    lists.edit(fleet.folder, "workers", lambda text: text.replace(" revoked=", " expires=2099-01-01\n# "))
    eventually(lambda: len(fleet.status().nodes) == 2, what="the return of node one")


def test_a_key_is_out_when_its_time_is_over(fleet: Fleet) -> None:
    """Nobody has to do anything for that."""
    client = fleet.client(fleet.invite("client", "guest", "--expires", "6s"))
    with client, pytest.raises(RequestError, match="the key of guest expired at 20"):
        for _ in client.stream("hi", max_tokens=LONG, ignore_eos=True):
            pass


def test_a_list_that_cannot_be_read_leaves_the_one_before_in_force(fleet: Fleet) -> None:
    """Said aloud; whoever was listed is let in, and the next good list counts."""
    path = lists.list_path(fleet.folder, "clients")
    good = path.read_text()
    path.write_text(good + "half a li")
    broker = fleet.stack.processes[0]
    eventually(lambda: "the one before it goes on to count" in broker.output(), what="words about it")
    fleet.status()

    path.write_text(good)
    pair = keys.new_pair()
    lists.add(fleet.folder, "clients", lists.line_of(pair.public, Principal("late"), None))
    own = keys.PeerKeys(pair, keys.load_server(fleet.folder).public)
    keys.keep_joined(fleet.folder.parent / "late", "client", own)

    def is_in() -> bool:
        try:
            with Client(fleet.stack.clients, keys=fleet.folder.parent / "late", connect_timeout_s=2):
                return True
        except ConnectError:
            return False

    eventually(is_in, what="a key that was added")


def test_a_refusal_is_counted_and_has_a_name(fleet: Fleet) -> None:
    """Key of the other port, key of nobody."""
    before = fleet.refusals()
    worker = keys.load_peer(fleet.folder, "worker")
    for number, pair in enumerate((worker.own, keys.new_pair())):
        keys.keep_joined(fleet.folder.parent / f"foreign-{number}", "client", keys.PeerKeys(pair, worker.server_public))
        with pytest.raises(ConnectError), Client(fleet.stack.clients, keys=fleet.folder.parent / f"foreign-{number}"):
            pass

    eventually(lambda: fleet.refusals()["unlisted"] > before["unlisted"], what="a refusal that is counted")
    assert fleet.refusals()["other_port"] > before["other_port"]
    told = [event.text for event in fleet.status().events if event.kind == "key_refused"]
    assert told[-1].startswith("refused at the port of clients: the key ")


def test_rights_that_change_hold_at_once(fleet: Fleet) -> None:
    """What was opened with the old ones is opened anew."""
    client = fleet.client(fleet.invite("client", "boss"))
    with client:
        with pytest.raises(RequestError, match="is not an admin"):
            client.drain("nobody")
        lists.edit(fleet.folder, "clients", lambda text: text.replace(" boss", " boss admin"))

        def is_admin() -> bool:
            try:
                client.drain("nobody")
            except RequestError as error:
                return "no node is called" in str(error)
            return False

        eventually(is_admin, what="the new rights")
