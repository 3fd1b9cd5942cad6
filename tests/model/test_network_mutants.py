"""The network's rules are tested here: with a bug planted in a core, the seeds of `test_network` must find it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from support.simnet.world import World
from zmqrt.broker import leases, results, worker_handler
from zmqrt.broker.nodes import Node
from zmqrt.broker.requests import Request
from zmqrt.broker.requests import Session as ClientSession
from zmqrt.broker.state import BrokerState
from zmqrt.protocol import messages as m
from zmqrt.worker.broker_sessions import BrokerSession
from zmqrt.worker.engines.base import TokenRequest
from zmqrt.worker.jobs import Job
from zmqrt.worker.preprocess import PreparedGeneration
from zmqrt.worker.requests import JobTable

pytestmark = pytest.mark.timeout(600)  # as in test_network
SEEDS = 1000
Plant = Callable[[pytest.MonkeyPatch], None]


def believe_any_lease(patch: pytest.MonkeyPatch) -> None:
    """Skip the fence: units count for the request they were made for, whoever holds its lease by now."""
    handle, release, lost = worker_handler.handle_worker, leases.release, dict[int, Request]()

    def remember(state: BrokerState, request: Request) -> Node:
        lost[request.lease] = request
        return release(state, request)

    def believe(state: BrokerState, peer: bytes, messages: Sequence[m.FromWorker], now: float, user: str) -> bool:
        for message in messages:
            request = lost.get(message.lease) if isinstance(message, m.WorkerPartial) else None
            if isinstance(message, m.WorkerPartial) and request is not None and request.offer is not None:
                owner = request.offer.node
                same = m.WorkerPartial(owner.epoch, request.lease, message.seq, message.n, message.body)
                handle(state, owner.peer, [same], now, user)
        return handle(state, peer, messages, now, user)

    patch.setattr("zmqrt.broker.core.handle_worker", believe)
    for module in ("dispatch", "completion"):
        patch.setattr(f"zmqrt.broker.{module}.release", remember)


def send_no_prefix(patch: pytest.MonkeyPatch) -> None:
    """Resume without prefix: the engine begins anew, and what it makes goes out as the rest."""
    right = PreparedGeneration.request

    def request(self: PreparedGeneration, ticket: int, ids: list[int]) -> TokenRequest:
        return right(self, ticket, ids[:0])

    patch.setattr(PreparedGeneration, "request", request)


def forget_a_credit(patch: pytest.MonkeyPatch) -> None:
    """Forget a credit: a broker notes that it was told a higher limit, and does not raise its own."""
    right, told = Node.allow, itertools.count(1)

    def allow(self: Node, dispatch_limit: int) -> None:
        if dispatch_limit > self.announced_limit and next(told) % 10 == 0:
            self.announced_limit = dispatch_limit
        else:
            right(self, dispatch_limit)

    patch.setattr(Node, "allow", allow)


def forget_what_was_consumed(patch: pytest.MonkeyPatch) -> None:
    """Forget a credit of the other kind: the window opens once and never again."""
    right = ClientSession.consume

    def consume(self: ClientSession, bytes_consumed: int) -> bool:
        return not self.consumed_bytes and right(self, bytes_consumed)

    patch.setattr(ClientSession, "consume", consume)


def lose_the_last_partial(patch: pytest.MonkeyPatch) -> None:
    """Lose the last PARTIAL before FINAL, and say in FINAL that it was sent."""
    right = JobTable.send_partial

    def send_partial(self: JobTable, session: BrokerSession, job: Job) -> None:
        if job.prepared is not None and job.total_n < job.prepared.max_new_tokens:
            right(self, session, job)

    patch.setattr(JobTable, "send_partial", send_partial)


def lose_the_last_unit_and_the_count(patch: pytest.MonkeyPatch) -> None:
    """Lose the last PARTIAL, and let the broker believe that this was all."""
    lose_the_last_partial(patch)
    right = results.take_final

    def take_final(state: BrokerState, node: Node, message: m.WorkerFinal, now: float) -> None:
        request = state.leases.get(message.lease)
        total_n = message.total_n if request is None else request.next_n
        limit = message.dispatch_limit
        right(state, node, m.WorkerFinal(message.epoch, message.lease, total_n, limit, message.meta, message.body), now)

    patch.setattr(worker_handler, "take_final", take_final)


PLANTS = [
    pytest.param(believe_any_lease, marks=pytest.mark.slow),  # one network in some hundred shows it
    send_no_prefix,
    forget_a_credit,
    forget_what_was_consumed,
    lose_the_last_partial,
    lose_the_last_unit_and_the_count,
]


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a thousand seeds, most within thirty; the failure names its seed and tells what happened last."""
    plant(monkeypatch)

    for seed in range(SEEDS):
        try:
            World(seed).run()
        except AssertionError as error:
            print(f"found with seed {seed}: {str(error).splitlines()[0]}")
            assert f"seed {seed}:" in str(error)
            return
    pytest.fail(f"{plant.__name__} lived through {SEEDS} seeds")
