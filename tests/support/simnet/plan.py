"""What a seed stands for: how many of everything, how fast, how bounded, and what may go wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from zmqrt.broker.core import Bounds
from zmqrt.protocol.timing import Timing

from .oracle import Wish

TIMING: Final = Timing(
    heartbeat_s=1.0,
    eviction_s=2.0,
    request_timeout_s=6.0,
    lost_grace_s=0.5,
    client_ack_s=1.25,
    reattach_grace_s=2.0,
)
"""A fifth of the defaults: the proportions are what matters, and idle time costs heartbeats."""
_STOPS: Final = ("e", "th", "é")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One network."""

    clients: int
    workers: int
    devices: int
    slots: int
    batch: int
    capacity: int
    requests: int
    faults: int
    faulty_s: float
    step_ms: float
    delay_s: float
    busy: float
    cancels: float
    non_idempotent: float
    stuck_readers: float
    uses_codec: bool
    freezes_engines: bool
    spreads_clients: bool
    patience_s: float
    bounds: Bounds
    timing: Timing = TIMING


def make_plan(rng: random.Random) -> Plan:
    """Draw a network."""
    slots = rng.choice((1, 2, 4))
    is_narrow = rng.random() < 0.5
    return Plan(
        clients=rng.randint(1, 3),
        workers=rng.randint(2, 3),
        devices=rng.choice((1, 1, 2)),
        slots=slots,
        batch=rng.choice((0, 1)),
        capacity=rng.choice((100, 2)),
        requests=rng.randint(6, 12),
        faults=rng.randint(2, 6),
        faulty_s=rng.uniform(2.0, 5.0),
        step_ms=rng.choice((20.0, 50.0, 100.0)),
        delay_s=rng.choice((0.001, 0.01, 0.1)),
        busy=rng.choice((0.0, 0.0, 0.3)),
        cancels=rng.choice((0.0, 0.0, 0.2)),
        non_idempotent=rng.choice((0.0, 0.0, 0.2)),
        stuck_readers=rng.choice((0.0, 0.0, 0.1)),
        uses_codec=rng.random() < 0.25,
        freezes_engines=rng.random() < 0.5,
        spreads_clients=rng.random() < 0.5,
        patience_s=rng.choice((3.0, 20.0)),
        bounds=Bounds(
            window_bytes=rng.choice((120, 400, 2000)) if is_narrow else 1 << 20,
            unsent_bytes=1 << 12,
            outstanding=rng.choice((4, 256)),
            in_flight=rng.choice((2, 100)),
        ),
    )


def make_wish(rng: random.Random, plan: Plan) -> Wish:
    """Draw a request."""
    is_stream = rng.random() < 0.7
    return Wish(
        prompt="hello"[: rng.randint(0, 5)],
        max_tokens=rng.randint(1, 40),
        seed=rng.getrandbits(62),
        temperature=rng.choice((0.0, 0.8)),
        stop=[rng.choice(_STOPS)] if rng.random() < 0.1 else [],
        is_stream=is_stream,
        is_idempotent=rng.random() >= plan.non_idempotent,
        timeout_s=rng.uniform(0.5, 1.0) * plan.timing.request_timeout_s,
        stuck_after=rng.randint(1, 10) if rng.random() < plan.stuck_readers else 10**9,
    )
