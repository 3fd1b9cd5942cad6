"""ADMIN: what principals marked admin may have the broker do."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..protocol import messages as m
from .fleet import Fleet
from .house import House

SCHEMA = "admin"
VERSION = 1


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the STATUS that answers ADMIN."""

    is_done: bool
    text: str


class Admin:
    """Checks who asks, and does it."""

    __slots__ = ("_fleet", "_house", "_is_admin")

    def __init__(self, house: House, fleet: Fleet, is_admin: Callable[[str], bool]) -> None:
        self._house = house
        self._fleet = fleet
        self._is_admin = is_admin

    def answer(self, user: str, message: m.Admin, now: float) -> m.Status:
        """Do what is asked, and say what was done."""
        if not self._is_admin(user):
            outcome = Outcome(is_done=False, text=f"{user!r} is not an admin; see authorized_clients")
        elif message.verb == "drain":
            outcome = self._drain(message.args.get("node"), now)
        else:
            outcome = Outcome(is_done=False, text=f"unknown verb {message.verb!r}; known: drain")
        return m.Status(message.qid, SCHEMA, VERSION, msgspec.msgpack.encode(outcome))

    def _drain(self, node_id: object, now: float) -> Outcome:
        nodes = [node for node in self._house.nodes.values() if node.node_id == node_id]
        drained = sum(self._fleet.drain(node, now) for node in nodes)
        if not drained:
            return Outcome(is_done=False, text=f"no running node is called {node_id!r}")
        return Outcome(is_done=True, text=f"{drained} node(s) called {node_id!r} are draining")
