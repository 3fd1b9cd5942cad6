"""Lines that are good once: the machine makes its own key, and whatever is killed in the middle goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
from zmqrt.protocol.enrolment import enrol
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.join_line import read_line

pytestmark = pytest.mark.integration
KILLED_AT = """
    import os, signal, sys
    from pathlib import Path
    from zmqrt.protocol import enrolment, file_edits, keys
    from zmqrt.protocol.join_line import read_line

    left = int(sys.argv[1])
    write = file_edits.replace_text

    def counted(path, text, *, mode):
        global left
        for step in (lambda: None, lambda: write(path, text, mode=mode)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            step()

    enrolment.replace_text = keys.replace_text = counted
    enrolment.enrol(read_line(sys.argv[2]), Path(sys.argv[3]))
"""
"""A machine that joins, and is killed before or after one of the files that it writes; with 0 it is not."""
BROKER_KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    from zmqrt.protocol import authorized_keys, file_edits

    replace, when = Path.replace, sys.argv[1]

    def killed(path, target):
        if when == "after":
            replace(path, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = killed
    authorized_keys.enrol(Path(sys.argv[2]), "clients", sys.argv[3].encode(), sys.argv[4].encode(), time.time())
"""


def child(code: str, *arguments: str) -> int:
    """Run a program of ours."""
    lines = [line.removeprefix("    ") for line in code.splitlines()]
    return subprocess.run([sys.executable, "-c", "\n".join(lines), *arguments], check=False, timeout=60).returncode


@dataclass
class Fleet:
    """A broker with keys."""

    stack: Stack
    folder: Path

    def invite(self, role: str, name: str, *words: str) -> str:
        """Make a line that is good once."""
        endpoint = self.stack.workers if role == "worker" else self.stack.clients
        given = ["invite", role, "--once", "--name", name, "--address", endpoint, *words, "--keys", str(self.folder)]
        result = CliRunner().invoke(cli, ["keys", "fleet", *given])
        assert result.exit_code == 0, result.output
        line = result.stdout.strip()
        public, group = read_line(line).peer_keys().own.public, lists.GROUPS[role != "worker"]
        assert lists.load_list(self.folder, group)[public].is_once
        return line

    def listed(self, name: str) -> list[lists.ListedKey]:
        """Return the lines of a name that let somebody in."""
        found = lists.load_list(self.folder, "clients").values()
        return [key for key in found if key.principal.name == name and not key.is_once]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run it."""
    folder = tmp_path_factory.mktemp("keys") / "fleet"
    keys.generate(folder)
    with Stack() as stack:
        stack.broker("--keys", str(folder))
        yield Fleet(stack, folder)


def is_served(fleet: Fleet, folder: Path) -> bool:
    """Connect with the keys of a folder."""
    with Client(fleet.stack.clients, keys=folder) as client:
        return bool(client.status().broker_id)


def test_a_machine_gets_a_key_that_only_it_has_and_the_line_is_used_up(fleet: Fleet, tmp_path: Path) -> None:
    """A second machine is refused, and leaves nothing behind; the first starts as often as it likes."""
    line = read_line(fleet.invite("client", "laptop"))
    own = enrol(line, tmp_path / "laptop")

    assert own.own != line.peer_keys().own
    assert is_served(fleet, tmp_path / "laptop")
    assert enrol(line, tmp_path / "laptop") == own
    with pytest.raises(ConfigurationError, match="the line for laptop was used, revoked or has expired"):
        enrol(line, tmp_path / "thief")
    assert list((tmp_path / "thief").iterdir()) == []
    assert len(fleet.listed("laptop")) == 1


def test_a_node_joins_by_a_line_that_is_good_once_and_comes_back(fleet: Fleet, tmp_path: Path) -> None:
    """With the same flags, after the line was used up; its rights are those of a worker."""
    line = fleet.invite("worker", "gpu", "--expires", "1h")
    flags = ("--keys", str(tmp_path / "gpu"))
    for _ in range(2):
        node = fleet.stack.worker(*flags, node_id="gpu", env={"ZMQRT_JOIN": line})
        with Client(fleet.stack.clients, keys=fleet.folder) as client:
            eventually(lambda: [each for each in client.status().nodes if each.node_id == "gpu"], what="the node")
        node.stop()


def test_a_line_that_is_good_once_opens_nothing_else(fleet: Fleet) -> None:
    """Whoever has it and asks for work is not answered; a library says what the line is for."""
    line = read_line(fleet.invite("client", "eager"))
    with pytest.raises(ConfigurationError, match="good once"):
        Client(join=fleet.invite("client", "other"))
    keys.keep_joined(fleet.folder.parent / "eager", "client", line.peer_keys())
    with pytest.raises(ConnectError), Client(fleet.stack.clients, keys=fleet.folder.parent / "eager"):
        pass


@pytest.mark.slow
def test_a_machine_that_is_killed_at_any_step_joins_at_its_next_start(fleet: Fleet, tmp_path: Path) -> None:
    """Before and after each file that it writes: never a line that is lost, never two keys."""
    deaths = 0
    for step in range(1, 40):
        name = f"step-{step}"
        line, folder = fleet.invite("client", name), tmp_path / name
        code = child(KILLED_AT, str(step), line, str(folder))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert child(KILLED_AT, "0", line, str(folder)) == 0

        assert is_served(fleet, folder)
        assert len(fleet.listed(name)) == 1
        assert not list(folder.glob("joining-*"))
    assert deaths == 10


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_broker_that_is_killed_while_it_lists_a_key_leaves_one_that_is_good(
    fleet: Fleet, tmp_path: Path, when: str
) -> None:
    """The line, or the machine's own; the list is whole."""
    line = read_line(fleet.invite("client", f"killed-{when}"))
    pending = keys.new_pair()
    folder = tmp_path / "machine"
    folder.mkdir()
    name = line.peer_keys().own.public.hex()[:16]
    handle = os.open(folder / f"joining-{name}.key", os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(pending.secret.decode())
    arguments = (when, str(fleet.folder), line.peer_keys().own.public.decode(), pending.public.decode())
    assert child(BROKER_KILLED, *arguments) == -signal.SIGKILL
    assert len(lists.load_list(fleet.folder, "clients")) > 1

    eventually(lambda: enrol(line, folder), what="the machine to be in")
    assert enrol(line, folder).own == pending
    assert is_served(fleet, folder)
