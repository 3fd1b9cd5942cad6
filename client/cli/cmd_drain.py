"""`zmqrt drain NODE`: have a node finish what it runs and leave, and show what still runs until it is gone.

Every broker given is asked, each through a client of its own: brokers share nothing, so each knows for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Final

import click
from rich.text import Text

from ...protocol.admin import AdminOutcome
from ...protocol.errors import ErrorKind, NotFoundError, UnauthorizedError, ZmqrtError, request_error
from ...protocol.sanitize import printable
from ...protocol.settings import options
from ...protocol.snapshot import NodeStatus
from ..config import ClientSettings
from ..sync import Client
from .stdio import data, is_terminal, note
from .text import duration, screen

_EVERY_S: Final = 0.25
_REJOIN_S: Final = 10.0
"""Nodes are back at a broker that was restarted within their longest backoff and a handshake."""
_SLACK_S: Final = 30.0
"""Beyond the deadline: a node that froze meanwhile is evicted and forgotten by then."""


@dataclass
class BrokerDrain:
    """A drain at one broker: its answer, and the processes of that name it knew. A node that starts anew is another."""

    endpoint: str
    client: Client
    node_id: str
    uuids: set[str] = field(default_factory=set[str])
    nodes: list[NodeStatus] = field(default_factory=list[NodeStatus])
    broker_epoch: int = 0
    trusted_at: float = 0.0
    outcome: AdminOutcome | None = None
    error: ZmqrtError | None = None

    def ask(self) -> None:
        """Ask for the drain."""
        try:
            snapshot = self.client.status()
            self.broker_epoch = snapshot.broker_epoch
            self.nodes = [node for node in snapshot.nodes if node.node_id == self.node_id]
            self.uuids = {node.worker_uuid for node in self.nodes}
            self.outcome = self.client.drain(self.node_id)
        except ZmqrtError as error:
            self.error = error

    def remaining(self, now: float) -> list[NodeStatus]:
        """Return the nodes that have not left yet; ask anew if the order was lost with a connection.

        A broker that cannot be asked, or that has only just started and may not know its nodes yet, is taken to know
        what it knew last: whether that is still true, the deadline decides.
        """
        if self.outcome is None:
            return []
        try:
            snapshot = self.client.status()
            if snapshot.broker_epoch != self.broker_epoch:
                self.broker_epoch, self.trusted_at = snapshot.broker_epoch, now + _REJOIN_S
            nodes = [node for node in snapshot.nodes if node.worker_uuid in self.uuids]
            if any(node.health == "active" for node in nodes):
                self.client.drain(self.node_id)
        except ZmqrtError:
            return self.nodes
        if nodes or now >= self.trusted_at:
            self.nodes = nodes
        return self.nodes


@click.command(help="Have a node finish what it runs and leave, and wait for it.")
@click.argument("node")
@click.option("--wait/--no-wait", default=True, help="Wait until the node is gone; or only ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as one line of JSON.")
@options(ClientSettings)
def command(settings: ClientSettings, node: str, wait: bool, as_json: bool) -> None:
    """Ask every broker, then watch."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        drains = [BrokerDrain(endpoint, _client(stack, settings, endpoint), node) for endpoint in settings.broker]
        for drain in drains:
            drain.ask()
        done = _outcomes(drains)
        if wait:
            give_up_at = started + max(outcome.deadline_s for outcome in done) + _SLACK_S
            _watch(drains, node, give_up_at, is_quiet=as_json)
    seconds = round(time.monotonic() - started, 3)
    if as_json:
        brokers = [
            {
                "endpoint": drain.endpoint,
                "is_done": drain.outcome is not None,
                "text": drain.outcome.text if drain.outcome is not None else str(drain.error),
            }
            for drain in drains
        ]
        data({"node": node, "is_gone": wait, "seconds": seconds, "brokers": brokers})
    else:
        click.echo(printable(f"node {node} has left after {duration(seconds)}" if wait else done[0].text))


def _client(stack: contextlib.ExitStack, settings: ClientSettings, endpoint: str) -> Client:
    client = Client.from_settings(dataclasses.replace(settings, broker=(endpoint,)), name="zmqrt drain")
    stack.callback(client.close)
    return client


def _outcomes(drains: Sequence[BrokerDrain]) -> list[AdminOutcome]:
    """Return what was done, with a warning for each broker that could not; raise where none could."""
    done = [drain.outcome for drain in drains if drain.outcome is not None]
    if not done:
        raise min((drain.error for drain in drains if drain.error is not None), key=_rank)
    for drain in drains:
        if drain.error is not None and not isinstance(drain.error, NotFoundError):
            note(f"warning: {drain.endpoint}: {drain.error}")
    return done


def _rank(error: ZmqrtError) -> tuple[bool, bool]:
    """Rank errors: the refusal of a broker that answered says more than the silence of another."""
    return not isinstance(error, UnauthorizedError), not isinstance(error, NotFoundError)


def _watch(drains: Sequence[BrokerDrain], node: str, give_up_at: float, *, is_quiet: bool) -> None:
    with _progress(is_quiet=is_quiet) as show:
        while nodes := [status for drain in drains for status in drain.remaining(time.monotonic())]:
            running = sum(status.in_flight for status in nodes)
            left_s = give_up_at - _SLACK_S - time.monotonic()
            if left_s < -_SLACK_S:
                text = f"node {node} is still there ({nodes[0].health}, {running} running); see 'zmqrt status'"
                raise request_error(ErrorKind.DEADLINE, text)
            show(f"node {node} is {nodes[0].health}: {running} still running, {duration(max(0.0, left_s))} left")
            time.sleep(_EVERY_S)


@contextlib.contextmanager
def _progress(*, is_quiet: bool) -> Generator[Callable[[str], None]]:
    """Show a line that changes on a terminal; nowhere else, where the end is what matters."""
    if is_quiet or not is_terminal():
        yield lambda _: None
        return
    with screen().status("asking") as status:
        yield lambda words: status.update(Text(printable(words)))
