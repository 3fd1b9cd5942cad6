"""What workers send: registration, heartbeats, credit, results; each message to whoever decides about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from ..protocol import messages as m
from .liveness import drain, hear, leave
from .nodes import Node, NodeState
from .registration import register, take_heartbeat
from .results import reject_late, take_error, take_final, take_partial
from .state import BrokerState, Side

_EVICTED, _REMOVED = NodeState.EVICTED, NodeState.REMOVED


def handle_worker(state: BrokerState, peer: bytes, messages: Sequence[m.FromWorker], now: float, user: str) -> bool:
    """Act on one envelope. False: it floods, which is a strike."""
    node = state.nodes.get(peer)
    is_calm = True
    for message in messages:
        if type(message) is m.Ready:
            node = register(state, peer, user, message, now)
            if node is None:
                return False  # refused: whoever goes on asking over this connection floods
        elif node is None or node.state is _EVICTED:
            _send_away(state, peer, node, message, now)
            return is_calm
        elif type(message) is m.WorkerFinal:  # the two that nearly all are come first
            take_final(state, node, message, now)
        elif type(message) is m.WorkerPartial:
            take_partial(state, node, message, now)
        else:
            is_calm = _control(state, node, message, now) and is_calm
            if node.state is _REMOVED:
                return is_calm
    if node is not None:
        hear(state, node, now)
    return is_calm


def _control(state: BrokerState, node: Node, message: m.FromWorker, now: float) -> bool:
    match message:
        case m.WorkerError():
            take_error(state, node, message, now)
        case m.Credit():
            if message.epoch == node.epoch:
                node.allow(message.dispatch_limit)
        case m.Heartbeat():
            if not node.control.take(now):
                return False
            take_heartbeat(state, node, message, now)
        case m.Draining() | m.Leave() if message.epoch == node.epoch:
            (leave if type(message) is m.Leave else drain)(state, node, now)
        case m.Draining() | m.Leave():
            pass  # of an epoch that is over
        case m.Ready() | m.WorkerFinal() | m.WorkerPartial():
            raise AssertionError(message)  # taken care of by the caller
        case _:
            assert_never(message)
    return True


def _send_away(state: BrokerState, peer: bytes, node: Node | None, message: m.FromWorker, now: float) -> None:
    """Answer whoever is not (or no longer) registered: it is to come anew, unless it is leaving."""
    if type(message) is m.Leave:
        if node is not None:
            leave(state, node, now)
        return
    if isinstance(message, m.WorkerPartial | m.WorkerFinal | m.WorkerError):
        reject_late(state, None, message.lease)
    text = "register first (READY)" if node is None else "evicted after a long silence; register anew"
    state.out.append((Side.WORKERS, peer, m.Dismiss(401, text)))
