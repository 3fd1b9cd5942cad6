"""What one request and one token cost a node, counted as core_counts.py counts: its agent, and its engine's process.

The agent is whole: loop, core, preprocessing, text, envelopes, channel. So is the loop of an engine's process, with the
mock's model in it. Played are the broker, over a socket within this process, and for each of the two the other end of
the channel. Time moves when something is said and by nothing else, so that no timer goes off.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final, cast
from unittest import mock

import zmq
from core_counts import SERVICE, Count, counting, idle, requests, tokens

from zmqrt.protocol import codec, tasks
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Backoff
from zmqrt.worker.agent import Agent
from zmqrt.worker.broker_link import BrokerLink, Ending
from zmqrt.worker.core import WorkerCore
from zmqrt.worker.device_discovery import DeviceSpec
from zmqrt.worker.device_pool import DevicePool
from zmqrt.worker.engine_child import EngineChild
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.adapters import Outbox
from zmqrt.worker.engines.base import Capacity, EngineSpec, EngineStats, SamplingParams, TokenEvent, TokenRequest
from zmqrt.worker.engines.channel import Channel, WakePipe, make_channel
from zmqrt.worker.engines.mock import MockEngine, MockTiming
from zmqrt.worker.engines.process import EngineLoop, make_adapter
from zmqrt.worker.requests import NodeConfig
from zmqrt.worker.supervisor import EngineSupervisor, restart_policy

_TURNS: Final = 4
"""Of the loop, until everything has happened that follows from something; it takes two."""
_PASS_S: Final = 0.0001
_SLOTS: Final = 256
_PROMPT: Final = "x" * 100
_LONG_BEATS: Final = m.Params(3_600_000, 7_200_000, 30_000, 256, 8 << 20)
_TOKEN: Final = 101
_SPEC: Final = EngineSpec(
    engine="mock",
    model=SERVICE,
    model_path="",
    device="mock:0",
    dtype="auto",
    max_model_len=0,
    batch_max_size=8,
    batch_max_latency_ms=0,
    slots=_SLOTS,
)


class PlayedLink(BrokerLink):
    """A link whose broker sits at the other end of a socket within this process."""

    def play(self, end: zmq.Socket[bytes]) -> None:
        """Have a connection."""
        self._dealer = self._monitor = end

    def open(self) -> None:
        """Have it already."""

    def events(self) -> Iterator[Ending | None]:
        """Keep the connection."""
        self._may_have_events = False
        return iter(())

    def hear(self) -> None:
        """Do what the event loop does when a broker has said something."""
        self._on_messages()

    def close(self, *, is_farewell: bool = False) -> None:
        """Leave the socket to whoever plays the broker."""
        del is_farewell
        self._dealer = self._monitor = None


class PlayedChild(EngineChild):
    """An engine's process of which there is nothing but its channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._policy = restart_policy()
        self._loop = asyncio.get_running_loop()
        self.may_have_ended = self._is_silent = self._is_watched_for_room = self.is_ready = False


class PlayedSupervisor(EngineSupervisor):
    """Starts no process."""

    def play(self, channel: Channel) -> None:
        """Have an engine at the other end of a channel."""
        (process,) = self._processes.values()
        process.child = PlayedChild(channel)


class AgentTalk:
    """An agent, and by hand a broker and an engine."""

    def __init__(self) -> None:
        self.count = Count()
        self.is_counting = False
        self._now = 100.0
        self._loop = asyncio.new_event_loop()
        cast("Any", self._loop).time = lambda: self._now
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._broker, its = self._context.socket(zmq.DEALER), self._context.socket(zmq.DEALER)
        self._broker.bind("inproc://broker")
        its.connect("inproc://broker")
        channel, end = make_channel()
        self._engine = Channel(end)
        self._ends = (channel, its)
        self._loop.run_until_complete(self._start(channel, its))
        self._leases = itertools.count(1)
        self._turn()
        self._say([m.WorkerWelcome("b", 1, 1, _LONG_BEATS)])
        capacity = Capacity(slots=_SLOTS, context=8192)
        service = ipc.EngineService(
            name="", kind="token", task="generate", capacity=capacity, model=SERVICE, revision="r"
        )
        self._step([ipc.EngineReady([service])])

    async def _start(self, channel: Channel, its: zmq.Socket[bytes]) -> None:
        device = DeviceSpec(id="mock:0", kind="mock")
        pool = DevicePool([device.info()], served=SERVICE, batch_max_size=8, context=8192)
        config = NodeConfig(
            worker_uuid=b"n" * 16, node_id="n", capacity=1000, default_max_tokens=1024, stall_s=1e9, ext={}
        )
        core = WorkerCore(config, pool, [("tcp://127.0.0.1:1", Backoff(None))], self._now)
        links: list[BrokerLink] = []
        self._agent = Agent(core, links, on_pass=lambda _now: None)
        self._link = PlayedLink(self._context, "tcp://127.0.0.1:1", keys=None, wake=self._agent.wake)
        self._link.play(its)
        links.append(self._link)
        core.tick(self._now)
        core.connected(0, self._now)
        engines = PlayedSupervisor(_SPEC, [device], wake=self._agent.wake)
        engines.play(channel)
        self._agent.attach(engines)

    def _turn(self) -> None:
        """Have all happen that follows from what was said, and take what is said then."""
        self._now += _PASS_S
        with counting(self.count) if self.is_counting else idle():
            for _ in range(_TURNS):
                self._loop.call_soon(self._loop.stop)
                self._loop.run_forever()
        self.told_broker: list[m.FromWorker] = []
        while self._broker.poll(0):
            self.told_broker += codec.FROM_WORKER.unpack(self._broker.recv_multipart()).messages
        self.told_engine = [one for data in self._engine.receive() for one in ipc.decode_to_engine(data)]

    def _say(self, messages: list[m.Message]) -> None:
        """Have the broker say something."""
        for frames in codec.pack(messages):
            self._broker.send_multipart(frames)
        self._loop.call_soon(self._link.hear)
        self._turn()

    def _step(self, messages: list[ipc.FromEngine]) -> None:
        """Have the engine say something."""
        self._engine.send(ipc.encode(messages))
        self._loop.call_soon(self._agent.wake)
        self._turn()

    def ask(self, number: int, *, stream: bool) -> list[int]:
        """Have the broker give out requests, in one envelope; return their tickets."""
        flags = m.IDEMPOTENT | m.RESUMABLE | (m.STREAM if stream else 0)
        body = tasks.encode(tasks.Generate(prompt=_PROMPT, raw=True, max_tokens=128 if stream else 1))
        leases = list(itertools.islice(self._leases, number))
        self._say(
            [
                m.Dispatch(
                    lease=lease,
                    rid=lease.to_bytes(16, "big"),
                    attempt=1,
                    service=SERVICE,
                    ttl_ms=30_000,
                    flags=flags,
                    user="",
                    resume_n=0,
                    resume=b"",
                    ext={},
                    body=body,
                )
                for lease in leases
            ]
        )
        tickets = [one.request.ticket for one in self.told_engine if isinstance(one, ipc.Submit)]
        assert len(tickets) == number
        return tickets

    def _made(self, events: list[TokenEvent]) -> None:
        self._step([ipc.StepReport(events, [], {"": EngineStats(steps=1)})])

    def token(self, asked: list[int], seq: int) -> None:  # noqa: ARG002 - an engine numbers no units
        """Have a step make each stream's next token."""
        self._made([TokenEvent(ticket=ticket, token_ids=[_TOKEN]) for ticket in asked])
        assert sum(isinstance(one, m.WorkerPartial) for one in self.told_broker) == len(asked)

    def end(self, asked: list[int]) -> None:
        """Have a step make the one token of each request."""
        self._made([TokenEvent(ticket=ticket, token_ids=[_TOKEN], finish_reason="length") for ticket in asked])
        assert sum(isinstance(one, m.WorkerFinal) for one in self.told_broker) == len(asked)

    def close(self) -> None:
        """Have everybody leave."""
        self._agent.stop(0)
        self._loop.run_until_complete(self._agent.run())
        self._loop.close()
        for end in (*self._ends, self._broker, self._engine):
            end.close(0)
        self._context.term()


class EngineTalk:
    """The loop of an engine's process with the mock's model, and its agent by hand."""

    def __init__(self) -> None:
        self.count = Count()
        self.is_counting = False
        self._clock: Callable[[], float] = itertools.count(100.0, 1e-6).__next__
        channel, end = make_channel()
        self._agent = Channel(end)
        self._channel = channel
        out, wakeups = Outbox(), WakePipe()
        engine = MockEngine(slots=_SLOTS, context=1024, timing=MockTiming(step_ms=0), may_end=False, clock=self._clock)
        adapters = {"": make_adapter(engine, _SPEC, out, wakeups.wake)}
        self._loop = EngineLoop(channel, adapters, out, wakeups=wakeups)
        self._tickets = itertools.count(1)

    def _turn(self) -> list[TokenEvent]:
        with mock.patch.object(time, "monotonic", self._clock), counting(self.count) if self.is_counting else idle():
            self._loop.turn()
        said = [one for data in self._agent.receive() for one in ipc.decode_from_engine(data)]
        return [event for one in said if isinstance(one, ipc.StepReport) for event in one.events]

    def ask(self, number: int, *, stream: bool) -> list[int]:
        """Submit requests in one envelope; their first tokens come in the same turn."""
        tickets = list(itertools.islice(self._tickets, number))
        prompt_ids = [256, *_PROMPT.encode()]
        submits = [
            ipc.Submit(
                "",
                TokenRequest(
                    ticket=ticket,
                    prompt_ids=prompt_ids,
                    max_new_tokens=128 if stream else 1,
                    stop_ids=[257],
                    sampling=SamplingParams(seed=ticket),
                ),
            )
            for ticket in tickets
        ]
        self._agent.send(ipc.encode(submits))
        made = self._turn()
        while sum(bool(event.token_ids) for event in made) < number:
            made += self._turn()
        return tickets

    def token(self, asked: list[int], seq: int) -> None:  # noqa: ARG002 - an engine numbers no units
        """Have a step make each stream's next token."""
        assert len(self._turn()) == len(asked)

    def end(self, asked: list[int]) -> None:
        """Have nothing left to do: a request's only token was its last."""

    def close(self) -> None:
        """Leave."""
        self._loop.close()
        self._channel.close()
        self._agent.close()


def measure() -> dict[str, Count]:
    """Count everything: a name for each load, and what a request or a token of it costs."""
    counts: dict[str, Count] = {}
    makes: dict[str, Callable[[], AgentTalk | EngineTalk]] = {"agent": AgentTalk, "engine, the mock": EngineTalk}
    for name, make in makes.items():
        for depth in (1, 64):
            with closing(make()) as talk:
                counts[f"{name}: a request, {depth} at once"] = requests(talk, depth)
            with closing(make()) as talk:
                counts[f"{name}: a token, {depth} at once"] = tokens(talk, depth)
    return counts


if __name__ == "__main__":
    for load, count in measure().items():
        print(f"{load:<40}{count.bytecodes:>10,.1f} bytecodes{count.c_calls:>8,.1f} C calls")
