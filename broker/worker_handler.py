"""What workers send: registration, heartbeats, credit, results; each message to whoever decides about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from ..protocol import messages as m
from .leases import reindex_and_wake
from .liveness import Liveness
from .nodes import Node, NodeState
from .registration import Registry
from .results import Results
from .state import BrokerState, Side, milliseconds

_EVICTED, _REMOVED = NodeState.EVICTED, NodeState.REMOVED


class Fleet:
    """The broker's face to workers."""

    __slots__ = ("_liveness", "_registry", "_results", "_state")

    def __init__(self, state: BrokerState, registry: Registry, liveness: Liveness, results: Results) -> None:
        self._state = state
        self._registry = registry
        self._liveness = liveness
        self._results = results

    def handle(self, peer: bytes, messages: Sequence[m.FromWorker], now: float, user: str) -> bool:
        """Act on one envelope. False: it floods, which is a strike."""
        node = self._state.nodes.get(peer)
        is_calm = True
        for message in messages:
            if type(message) is m.Ready:
                node = self._registry.register(peer, user, message, now)
                if node is None:
                    return False  # refused: whoever goes on asking over this connection floods
            elif node is None or node.state is _EVICTED:
                self._send_away(peer, node, message, now)
                return is_calm
            elif type(message) is m.WorkerFinal:  # the two that nearly all are come first
                self._results.final(node, message, now)
            elif type(message) is m.WorkerPartial:
                self._results.partial(node, message, now)
            else:
                is_calm = self._act(node, message, now) and is_calm
                if node.state is _REMOVED:
                    return is_calm
        if node is not None:
            self._liveness.heard(node, now)
            reindex_and_wake(self._state, node)
        return is_calm

    def _act(self, node: Node, message: m.FromWorker, now: float) -> bool:
        match message:
            case m.WorkerError():
                self._results.error(node, message, now)
            case m.Credit():
                if message.epoch == node.epoch:
                    node.allow(message.dispatch_limit)
            case m.Heartbeat():
                if not node.control.take(now):
                    return False
                self._registry.beat(node, message, now)
            case m.Draining() | m.Leave():
                self._go(node, message, now)
            case m.Ready() | m.WorkerFinal() | m.WorkerPartial():
                raise AssertionError(message)  # taken care of by the caller
            case _:
                assert_never(message)
        return True

    def _go(self, node: Node, message: m.Draining | m.Leave, now: float) -> None:
        if message.epoch != node.epoch:
            return
        if type(message) is m.Leave:
            self._liveness.leave(node, now)
        else:
            self._liveness.drain(node, now)

    def _send_away(self, peer: bytes, node: Node | None, message: m.FromWorker, now: float) -> None:
        """Answer whoever is not (or no longer) registered: it is to come anew, unless it is leaving."""
        if type(message) is m.Leave:
            if node is not None:
                self._liveness.leave(node, now)
            return
        if type(message) in (m.WorkerPartial, m.WorkerFinal, m.WorkerError):
            self._state.counters.late_reply += 1
        text = "register first (READY)" if node is None else "evicted after a long silence; register anew"
        self._state.out.append((Side.WORKERS, peer, m.Dismiss(401, text)))

    def drain(self, node: Node, now: float) -> bool:
        """Ask a node to finish and leave; False if it is not one that could."""
        if not self._liveness.drain(node, now):
            return False
        self._state.tell_worker(node, m.Drain(milliseconds(self._state.timing.drain_s)))
        reindex_and_wake(self._state, node)
        return True
