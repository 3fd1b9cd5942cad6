"""Judge a broker: whether it was reached, who works for it, what can be asked, whose clock is wrong. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ...protocol.snapshot import NodeStatus, Snapshot
from .check import Check, count_of, cut_remedy
from .machine import SET_CLOCK

CLOCKS_APART_S: Final = 2.0
"""A question to the other end of the world takes a tenth of it."""
_NAME_ANOTHER: Final = "see that it runs and that the address is right, or name another one with --broker"
_GONE: Final = ("lost", "evicted")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of asking one broker.

    Attributes:
        is_named: Somebody named it, by flag, environment or file; else it is the default.
        error: Why it was not reached.
        unix_s: This machine's clock in the middle of the question.
    """

    endpoint: str
    is_named: bool
    error: str = ""
    snapshot: Snapshot | None = None
    round_trip_s: float = 0.0
    unix_s: float = 0.0


def judge(asked: Asked) -> list[Check]:
    """Judge all of it."""
    group = f"broker {asked.endpoint}".rstrip()
    snapshot = asked.snapshot
    if snapshot is None:
        return [_unreachable(group, asked)]
    return [
        _reached(group, snapshot, asked.round_trip_s),
        _nodes(group, snapshot),
        *_models(group, snapshot),
        *_clocks(group, snapshot, asked.unix_s),
    ]


def _unreachable(group: str, asked: Asked) -> Check:
    found, remedy = cut_remedy(asked.error, _NAME_ANOTHER)
    if asked.is_named:
        return Check(group, "reach", "bad", found, remedy)
    return Check(group, "reach", "note", found, f"{remedy} (nobody named this broker: it is the default)")


def _reached(group: str, snapshot: Snapshot, round_trip_s: float) -> Check:
    found = f"{snapshot.broker_id} answers in {1000 * round_trip_s:.1f} ms"
    if snapshot.draining:
        return Check(group, "reach", "note", f"{found}; it drains", "start its successor, or name another broker")
    return Check(group, "reach", "ok", found)


def _nodes(group: str, snapshot: Snapshot) -> Check:
    nodes = snapshot.nodes
    if not nodes:
        remedy = "start one with `zmqrt-worker --broker tcp://HOST:7556`, with this broker's host"
        return Check(group, "nodes", "note", "no node has joined yet", remedy)
    found = f"{sum(map(_is_ready, nodes))} of {len(nodes)} ready"
    failed = [one.node_id for one in nodes if one.phase == "failed"]
    if failed:
        remedy = f"read the log of {', '.join(failed)}: its last lines name the device, the reason and what to do"
        return Check(group, "nodes", "bad", f"{found}; {', '.join(failed)} cannot serve", remedy)
    gone = [one.node_id for one in nodes if one.health in _GONE]
    if gone:
        remedy = "start what is gone again, or see to its network; a node that comes back joins by itself"
        return Check(group, "nodes", "note", f"{found}; gone: {', '.join(gone)}", remedy)
    if not all(map(_is_ready, nodes)):
        return Check(group, "nodes", "note", found, "wait; `zmqrt top` shows how far each one is")
    return Check(group, "nodes", "ok", found)


def _is_ready(node: NodeStatus) -> bool:
    return node.health == "active" and node.phase == "ready" and node.capacity > 0


def _models(group: str, snapshot: Snapshot) -> Iterator[Check]:
    served = sorted(one.service for one in snapshot.services if one.nodes)
    idle = sorted(one.service for one in snapshot.services if not one.nodes)
    if served:
        yield Check(group, "models", "ok", ", ".join(served))
    if idle:
        queued = sum(one.queued for one in snapshot.services if not one.nodes)
        found = f"no node serves {', '.join(idle)} now, {count_of(queued, 'request')} waiting"
        yield Check(group, "models", "note", found, "start a node with it, or wait until one is ready")


def _clocks(group: str, snapshot: Snapshot, unix_s: float) -> Iterator[Check]:
    if not snapshot.unix_s:
        return  # an older broker, which does not tell the time
    apart_s = snapshot.unix_s - unix_s
    found = f"the broker's is {abs(apart_s):.1f} s {'ahead' if apart_s > 0 else 'behind'}"
    if abs(apart_s) <= CLOCKS_APART_S:
        yield Check(group, "clocks", "ok", found)
        return
    remedy = f"on both machines {SET_CLOCK}; nothing in zmqrt depends on it, but their logs do not line up"
    yield Check(group, "clocks", "note", found, remedy)
