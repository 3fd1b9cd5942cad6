"""ADMIN: what principals marked admin may have the broker do."""

from __future__ import annotations

from collections.abc import Callable

from ..protocol import admin
from ..protocol import messages as m
from ..protocol.admin import AdminOutcome
from ..protocol.errors import ErrorKind
from .nodes import NodeState
from .state import BrokerState
from .worker_handler import Fleet

_LISTED = 20
"""Nodes named to somebody who named none of them: a screen, not a fleet."""


class Admin:
    """Checks who asks, and does it."""

    __slots__ = ("_fleet", "_is_admin", "_state")

    def __init__(self, state: BrokerState, fleet: Fleet, is_admin: Callable[[str], bool]) -> None:
        self._state = state
        self._fleet = fleet
        self._is_admin = is_admin

    def answer(self, user: str, message: m.Admin, now: float) -> m.Status:
        """Do what is asked, and say what was done."""
        if not self._is_admin(user):
            outcome = _refusal(ErrorKind.FORBIDDEN, f"{user!r} is not an admin; see authorized_clients")
        elif message.verb == "drain":
            outcome = self._drain(message.args.get("node"), now)
        else:
            outcome = _refusal(ErrorKind.BAD_REQUEST, f"unknown verb {message.verb!r}; known: drain")
        return m.Status(message.qid, admin.SCHEMA, admin.SCHEMA_VERSION, admin.encode(outcome))

    def _drain(self, node_id: object, now: float) -> AdminOutcome:
        nodes = [node for node in self._state.nodes_by_uuid.values() if node.node_id == node_id]
        if not nodes:
            return _refusal(ErrorKind.NOT_FOUND, f"no node is called {node_id!r}; {self._who_is_here()}")
        asked = sum(self._fleet.drain(node, now) for node in nodes)
        deadline_s = self._state.timing.drain_s
        if asked:
            return AdminOutcome(
                is_done=True, text=f"{asked} node(s) called {node_id!r} are draining", deadline_s=deadline_s
            )
        if any(node.state is NodeState.DRAINING for node in nodes):
            return AdminOutcome(is_done=True, text=f"node {node_id!r} is draining already", deadline_s=deadline_s)
        states = ", ".join(sorted({node.state.value for node in nodes}))
        text = f"node {node_id!r} cannot be asked, it is {states}; its work goes elsewhere, and it is forgotten soon"
        return _refusal(ErrorKind.NO_WORKER, text)

    def _who_is_here(self) -> str:
        names = sorted({node.node_id for node in self._state.nodes_by_uuid.values()})
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"there are: {', '.join(names[:_LISTED])}{more}" if names else "no node has joined"


def _refusal(kind: ErrorKind, text: str) -> AdminOutcome:
    return AdminOutcome(is_done=False, text=text, reason=kind.value)
