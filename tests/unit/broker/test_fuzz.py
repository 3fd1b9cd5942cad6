"""The broker core and peers that say anything at all, in any order: it neither breaks nor contradicts itself.

`tests/model` knows what peers may do and checks the answers; here nobody keeps to anything, and only what must hold in
any case is asked.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import msgspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.broker_invariants import check
from support.examples import examples
from support.wire import of_struct, plausible, weighted
from zmqrt.broker.core import Bounds, Broker, SendFailure, Side
from zmqrt.protocol import admin, codec, request_trace, snapshot
from zmqrt.protocol import messages as m
from zmqrt.protocol.codec import BadMessage
from zmqrt.protocol.errors import ProtocolError
from zmqrt.protocol.timing import Timing

PEERS = 3
UUIDS = [bytes([number]) * 16 for number in range(1, 4)]
SMALL = st.integers(0, 4)
CREDIT = st.integers(0, 40)
HUGE = st.sampled_from([2**31, 2**32 - 1, 2**62, 2**63 - 1])
LYING = st.sampled_from([b"\xdd\xff\xff\xff\xff\xc0", b"\xdc\xff\xff", b"\x9f\xc0", b"\xc0"])
RESUME = weighted((4, st.lists(st.binary(max_size=20), max_size=3).map(msgspec.msgpack.encode)), (1, LYING))
SERVICES = [m.ServiceOffer(name, 2, "generate", name, "r1", 64) for name in "ab"]
SKILLED = [m.ServiceOffer(name, 2, "generate", name, "r1", 64, ["logprobs", "tools"]) for name in "ab"]
PLAIN = [m.ServiceOffer(name, 2, "generate", name, "r1", 64, []) for name in "ab"]
MANY = [m.ServiceOffer(f"many-{number}", 2**32 - 1, "embed") for number in range(40)]
EXTS: list[m.Ext] = [
    {},
    {"total_ms": 5},
    {"seed": 1},
    {"revision": "r1"},
    {"needs": "logprobs"},
    {"needs": "tools,logprobs"},
    {"needs": ",\x1b,tools"},
    {"task": "embed", "prefer": "many-1"},
    {"crashes": 2**63 - 1},
    {"traceparent": "x" * 256},
    {"device": "\x1b" * 256, "batch": 2**63 - 1, "wait_us": -(2**63 - 1), "prefill_us": 2**63 - 1},
    {"request_id": "\U0001f600" * 256, "party": "\x1b" * 256, "prefix": ",".join("abc")},
]
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "min_version": st.just(1),
    "max_version": st.just(1),
    "rid": st.sampled_from(UUIDS),
    "worker_uuid": st.sampled_from(UUIDS),
    "service": st.sampled_from(["a", "b"]),
    "revision": st.sampled_from(["r1", "r2"]),
    "max_inflight": weighted((6, SMALL), (1, HUGE)),
    "capacity": weighted((6, SMALL), (1, HUGE)),
    "phase": st.just("ready"),
    "loop_age_ms": st.just(0),
    "ttl_ms": st.integers(1, 60_000),
    "flags": st.sampled_from([m.IDEMPOTENT, m.IDEMPOTENT | m.STREAM | m.RESUMABLE, m.STREAM, 0]),
    "resume_n": weighted((9, st.integers(0, 2)), (1, HUGE)),
    "resume": RESUME,
    "dispatch_limit": CREDIT,
    "lease": st.integers(0, 2),
    "seq": st.integers(0, 2),
    "n": weighted((9, st.integers(0, 3)), (1, HUGE)),
    "total_n": weighted((9, st.integers(0, 2)), (1, HUGE)),
    "node_id": st.sampled_from(["n", "\x1b" * 128, "\U0001f600" * 128]),
    "prio": st.sampled_from([-100, 0, 1, 100]),
    "meta": st.sampled_from([{}, {"finish_reason": "\x1b" * 256, "prompt_tokens": 2**63 - 1, "completion_tokens": -1}]),
    "code": st.sampled_from([400, 429, 499, 500, 502, 503]),
    "reason": st.sampled_from(["no_slot", "model_raised", "engine_restarted", "draining", "nonsense"]),
    "window_bytes": st.sampled_from([0, 1, 50, 1 << 20]),
    "bytes_consumed": st.integers(0, 2000),
    "what": st.sampled_from(["status", "services", "metrics", "explain"]),
    "verb": st.sampled_from(["drain", "load"]),
    "args": st.sampled_from([{}, {"node": "a"}, {"request": UUIDS[0].hex()}]),
    "services": st.sampled_from([SERVICES, SERVICES[:1], [], MANY, SKILLED, PLAIN]),
    "ext": st.sampled_from(EXTS),
}
BOUNDS = Bounds(
    in_flight=3,
    outstanding=4,
    window_bytes=300,
    unsent_bytes=400,
    prefix_bytes=500,
    result_cache_bytes=5000,
    held_bytes=20_000,
    subscribers=2,
    attempts=3,
    sessions=5,
)
MOST_SERVICES = (PEERS + 2) * (len(MANY) + 2) + 8
"""What all nodes offer at a time, what two offered that were lost just now, and a few that only clients have named."""
TIMING = Timing(heartbeat_s=2.0, eviction_s=4.0, request_timeout_s=10.0)
WHO = st.integers(0, PEERS - 1)
GREETING = st.builds(m.Hello, st.sampled_from(UUIDS), st.just(1), st.just(1))
OFFERS = st.sampled_from([SERVICES, SERVICES, SKILLED, PLAIN])
JOINING = st.builds(m.Ready, st.sampled_from(UUIDS), st.just("n"), st.integers(1, 4), OFFERS, st.just([]))
BEAT = st.builds(m.Heartbeat, st.just(1), st.just(1), st.just(0), CREDIT, st.just("ready"))
ASKING = plausible(m.Request, {**LIKELY, "service": st.sampled_from(["a", "b", ""])})
RESULTS = [plausible(kind, LIKELY) for kind in (m.WorkerPartial, m.WorkerFinal, m.WorkerError)]
OTHERS = [plausible(kind, LIKELY) for kind in (m.Cancel, m.Ping, m.Bye, m.Query, m.Window, m.Admin)]
FLEET = [plausible(kind, LIKELY) for kind in (m.Ready, m.Heartbeat, m.Credit, m.Draining, m.Leave)]
ANYTHING = [st.one_of([of_struct(one) for one in union.__args__]) for union in (m.FromClient, m.FromWorker)]
FROM_CLIENT = weighted((2, GREETING), (6, ASKING), (3, st.one_of(OTHERS)), (1, ANYTHING[0]))
FROM_WORKER = weighted((1, JOINING), (4, BEAT), (8, st.one_of(RESULTS)), (1, st.one_of(FLEET)), (1, ANYTHING[1]))
BAD: st.SearchStrategy[Any] = st.one_of(
    st.just(ProtocolError("foreign", is_foreign=True)),
    st.just(ProtocolError("version", peer_major=2)),
    st.just(ProtocolError("frames")),
    st.lists(st.builds(BadMessage, st.text(max_size=600), st.none() | st.sampled_from(UUIDS)), max_size=3),
)
SIDE = st.sampled_from(list(Side))
SERVE = st.tuples(st.just("serve"), st.integers(0, 3), st.one_of(RESULTS), st.integers(0, 9))
CALM = weighted(
    (4, st.tuples(st.just("clients"), st.integers(0, 1), st.lists(ASKING, min_size=1, max_size=2))),
    (6, SERVE),
    (1, st.tuples(st.just("workers"), st.integers(0, 1), st.lists(BEAT, min_size=1, max_size=1))),
    (1, st.tuples(st.just("clients"), st.integers(0, 1), st.lists(st.one_of(OTHERS), min_size=1, max_size=2))),
    (1, st.tuples(st.just("time"), st.just(0.2), st.booleans())),
)
STEP = weighted(
    (10, st.tuples(st.just("clients"), WHO, st.lists(FROM_CLIENT, min_size=1, max_size=4))),
    (12, st.tuples(st.just("workers"), WHO, st.lists(FROM_WORKER, min_size=1, max_size=4))),
    (9, SERVE),
    (1, st.tuples(st.just("bad"), SIDE, WHO, BAD)),
    (1, st.tuples(st.just("gone"), SIDE, WHO)),
    (1, st.tuples(st.just("unsent"), SIDE, WHO, st.sampled_from(list(SendFailure)))),
    (1, st.tuples(st.just("new owner"), SIDE, WHO)),
    (4, st.tuples(st.just("time"), st.sampled_from([0.01] * 5 + [0.3, 0.3, 1.2, 3.0, 30.0]), st.booleans())),
)


def check_legal(side: Side, message: Any) -> None:
    """Check that the peer it is for can read a message: what comes in may be anything, what goes out may not."""
    subscriber: codec.Codec[Any] = codec.TO_CLIENT if side is Side.CLIENTS else codec.TO_WORKER
    (frames,) = codec.pack([message])
    assert subscriber.unpack(frames) == codec.Unpacked([message])


def check_readable(status: m.Status) -> None:
    """Check that whoever asked can read the answer."""
    match status.schema:
        case snapshot.SCHEMA:
            assert snapshot.decode(status.body).broker_id == "b"
        case request_trace.SCHEMA:
            request_trace.decode(status.body)
        case _:
            assert status.schema in (snapshot.LATER, snapshot.TOO_LARGE, admin.SCHEMA, "unknown")


class Crowd:
    """A broker, and what its peers have said and heard."""

    def __init__(self) -> None:
        ids = itertools.count(1)
        self.now = 1000.0
        self.broker = Broker(TIMING, BOUNDS, ids.__next__, broker_id="b", broker_epoch=7, now=self.now)
        self.connections = itertools.count(1)
        self.names = {(side, who): self.fresh() for side in Side for who in range(PEERS)}
        self.users: dict[bytes, str] = {}
        self.spoke: set[tuple[Side, bytes]] = set()
        self.leases: dict[int, bytes] = {}
        self.progress: dict[int, int] = {}
        self.epochs: dict[bytes, int] = {}
        self.last: dict[tuple[Side, bytes], list[Any]] = {}

    def fresh(self) -> bytes:
        """Name a new connection, as a ROUTER does."""
        return b"p%d" % next(self.connections)

    def reindex(self) -> None:
        """Check everything that must be true after each event."""
        assert len(self.broker.out) < 1000
        assert len(self.broker.state.services) <= MOST_SERVICES
        for side, peer, message in self.broker.out:
            assert (side, peer) in self.spoke, f"said to a peer that is not there: {message}"
            check_legal(side, message)
            if isinstance(message, m.Status):
                check_readable(message)
            self.last.setdefault((side, peer), []).append(message)
            if isinstance(message, m.Dispatch):
                assert message.lease not in self.leases
                self.leases[message.lease] = peer
                self.progress[message.lease] = message.resume_n
            elif isinstance(message, m.WorkerWelcome):
                self.epochs[peer] = message.epoch
        assert all(answer in self.spoke for answer in self.broker.version_answers)
        self.broker.out.clear()
        self.broker.version_answers.clear()
        check(self.broker.state)

    def step(self, what: str, *details: Any) -> None:
        """Let one thing happen; no single one may take long."""
        started = time.thread_time()
        match what:
            case "clients":
                self.say(Side.CLIENTS, *details)
            case "workers":
                self.say(Side.WORKERS, *details)
            case "serve":
                self.serve(*details)
            case "time":
                self.wait(*details)
            case _:
                self.happen(what, *details)
        self.reindex()
        assert time.thread_time() - started < 2.0

    def say(self, side: Side, who: int, messages: list[Any]) -> None:
        """Send an envelope; what is said of leases and epochs is right more often than chance has it."""
        peer = self.names[side, who]
        self.spoke.add((side, peer))
        self.broker.handle(side, peer, [self.aim(peer, one) for one in messages], self.now, self.users.get(peer, ""))

    def serve(self, which: int, message: m.WorkerPartial | m.WorkerFinal | m.WorkerError, chance: int) -> None:
        """Answer under one of the last leases, nine times of ten from where that stream stands."""
        for lease, peer in list(self.leases.items())[-1 - which :][:1]:
            at = self.progress.get(lease, 0)
            known: dict[str, Any] = {"epoch": self.epochs[peer], "lease": lease}
            if isinstance(message, m.WorkerPartial) and chance:
                known["seq"] = at
                self.progress[lease] = at + message.n
            elif isinstance(message, m.WorkerFinal) and chance:
                known["total_n"] = at
            message = msgspec.structs.replace(message, **known)
            if (Side.WORKERS, peer) in self.spoke:
                self.broker.handle(Side.WORKERS, peer, [message], self.now, self.users.get(peer, ""))

    def aim(self, peer: bytes, message: Any) -> Any:
        """Turn a small epoch into the right one."""
        if getattr(message, "epoch", 9) < 9 or isinstance(message, m.Heartbeat | m.Credit):
            message = msgspec.structs.replace(message, epoch=self.epochs.get(peer, 1))
        return message

    def happen(self, what: str, side: Side, who: int, *details: Any) -> None:
        """Do what befalls a connection."""
        peer = self.names[side, who]
        if what == "bad":
            self.spoke.add((side, peer))
            self.broker.bad_input(side, peer, details[0], self.now)
        elif what == "new owner":
            self.users[peer] = "eve"
        elif (side, peer) not in self.spoke:
            pass
        elif what == "unsent" and details[0] is not SendFailure.UNREACHABLE:
            self.broker.send_failed(side, peer, self.last.pop((side, peer), []), details[0], self.now)
        else:
            if what == "unsent":
                self.broker.send_failed(side, peer, self.last.pop((side, peer), []), details[0], self.now)
            else:
                self.broker.peer_gone(side, peer, self.now)
            self.spoke.discard((side, peer))
            self.names[side, who] = self.fresh()

    def wait(self, seconds: float, is_late: bool) -> None:  # noqa: FBT001
        """Let time pass, with a tick when due or (a busy shell) only at the end."""
        end = self.now + seconds
        for _ in range(2000):
            due = self.broker.next_deadline()
            if is_late or due > end:
                break
            assert due > self.now - 60.0
            self.now = max(self.now, due)
            self.broker.tick(self.now)
            self.reindex()
        else:
            raise AssertionError("the broker never rests")
        self.now = end
        self.broker.tick(end)


@settings(
    max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(CALM, max_size=20), st.lists(STEP, min_size=5, max_size=30))
def test_nothing_that_peers_say_breaks_the_broker(calm: list[tuple[Any, ...]], wild: list[tuple[Any, ...]]) -> None:
    """No exception, tables that agree after each event, answers only to who is there, and everything ends."""
    crowd = Crowd()
    for who in (0, 1):  # most begins well
        crowd.step("clients", who, [m.Hello(UUIDS[who], 1, 1)])
        crowd.step("workers", who, [m.Ready(UUIDS[who], "n", 3, SERVICES, [])])
        crowd.step("workers", who, [m.Heartbeat(1, 1, 0, 10, "ready")])
    for one in calm + wild:
        crowd.step(*one)
        crowd.broker.snapshot(crowd.now)

    crowd.broker.drain(crowd.now)
    crowd.step("time", TIMING.drain_s + 1.0, False)
    crowd.step("time", 2 * TIMING.client_gone_s, False)
    assert crowd.broker.snapshot(crowd.now).queued == crowd.broker.snapshot(crowd.now).running == 0
    assert crowd.broker.snapshot(crowd.now).nodes == []


def test_an_evicted_node_that_comes_back_under_another_name_is_forgotten() -> None:
    """Else the end of the old one would take the session of the new one with it."""
    crowd = Crowd()
    crowd.step("workers", 0, [m.Ready(UUIDS[0], "n", 1, [], [])])
    crowd.step("time", TIMING.eviction_s + 0.2, False)
    crowd.step("workers", 0, [m.Ready(UUIDS[1], "n", 1, [], [])])

    (node,) = crowd.broker.snapshot(crowd.now).nodes
    assert (node.worker_uuid, node.health) == (UUIDS[1].hex(), "active")


@settings(
    max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(st.tuples(SIDE, WHO, BAD), max_size=30))
def test_what_cannot_be_read_changes_counters_only(inputs: list[tuple[Side, int, Any]]) -> None:
    """A peer that sends garbage gets no session, no node, no request; eight times, and it is not heard."""
    crowd = Crowd()
    for one in inputs:
        crowd.step("bad", *one)

    seen = crowd.broker.snapshot(crowd.now)
    assert (seen.clients, seen.nodes, seen.services, seen.queued, seen.running) == (0, [], [], 0, 0)
    by_peer = [sum(1 for side, who, _ in inputs if (side, who) == peer) for peer in crowd.names]
    assert crowd.broker.counters.strikes == sum(min(count, 8) for count in by_peer)
    assert crowd.broker.counters.muted == sum(count >= 8 for count in by_peer)


UNITS = st.tuples(weighted((2, st.integers(0, 3)), (1, HUGE)), st.binary(max_size=8))
ENDING = st.sampled_from(["cancelled", "lost", "failed", "handed back"])


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(UNITS, min_size=1, max_size=4), weighted((1, st.integers(0, 2)), (1, HUGE)), RESUME, ENDING)
@example([(1, b"x"), (2**63 - 1, b"xx")], 0, b"", "failed")
@example([(1, b"x")], 1, b"\xdd\xff\xff\xff\xff\xc0", "lost")
@example([(1, b"x")], 2**63 - 1, b"\x91\xc0", "cancelled")
def test_whatever_is_counted_all_that_is_said_of_it_can_be_read(
    units: list[tuple[int, bytes]], resume_n: int, resume: bytes, ending: str
) -> None:
    """A stream whose client and whose node count as they like, and that goes on elsewhere or ends."""
    crowd = Crowd()
    crowd.step("clients", 0, [m.Hello(UUIDS[0], 1, 1)])
    for who in (0, 1):
        crowd.step("workers", who, [m.Ready(UUIDS[who], "n", 3, SERVICES, [])])
        crowd.step("workers", who, [m.Heartbeat(1, 1, 0, 10, "ready")])
    flags = m.IDEMPOTENT | m.STREAM | m.RESUMABLE | (m.RESUME if resume_n else 0)
    crowd.step("clients", 0, [m.Request(UUIDS[0], "a", 9000, flags, 0, resume_n, 0, b"x", resume)])
    for n, body in units:
        crowd.step("serve", 0, m.WorkerPartial(0, 0, 0, n, body), 1)
    for lease, peer in list(crowd.leases.items())[-1:]:
        who = next(who for who in range(PEERS) if crowd.names[Side.WORKERS, who] == peer)
        match ending:
            case "cancelled":
                crowd.step("clients", 0, [m.Cancel(UUIDS[0])])
            case "lost":
                crowd.step("gone", Side.WORKERS, who)
            case _:
                reason, code = ("model_raised", 500) if ending == "failed" else ("draining", 503)
                crowd.step("workers", who, [m.WorkerError(1, lease, code, reason, False, 0, "")])
    crowd.step("time", 30.0, False)

    assert crowd.broker.counters.internal_errors == 0


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.tuples(WHO, st.integers(1, 40), st.booleans()), min_size=1, max_size=60))
def test_no_node_makes_the_broker_remember_more_than_it_offers(beats: list[tuple[int, int, bool]]) -> None:
    """New names with every heartbeat, from nodes that stay and nodes that go."""
    crowd, fresh = Crowd(), itertools.count()
    for who, count, is_gone in beats:
        names = [m.ServiceOffer(f"n{next(fresh)}", 1, "generate") for _ in range(count)]
        crowd.step("workers", who, [m.Ready(UUIDS[who], "n", 3, [], [])])
        crowd.step("workers", who, [m.Heartbeat(1, 1, 0, 10, "ready", services=names)])
        if is_gone:
            crowd.step("gone", Side.WORKERS, who)
        crowd.step("time", 3.0, False)
