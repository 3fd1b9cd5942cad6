"""A supervisor with real engine processes, and everything that they say, for tests that play the agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import psutil

from zmqrt.worker.device_discovery import DeviceSpec
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import EngineSpec, EngineStats, ItemResult, SamplingParams, TokenEvent, TokenRequest
from zmqrt.worker.engines.mock_tokens import expected_tokens
from zmqrt.worker.supervisor import EngineSupervisor

T = TypeVar("T")
M = TypeVar("M", bound=ipc.FromEngine)
HELLO = list(b"hello")
WITHIN_S = 30.0
"""Generous, since a busy machine is no failure."""

SPEC = EngineSpec(
    engine="mock",
    model="toy",
    model_path="",
    device="",
    dtype="auto",
    max_model_len=0,
    batch_max_size=8,
    batch_max_latency_ms=50,
    slots=0,
)


def spec(engine: str = "mock", **options: str) -> EngineSpec:
    """Build a spec for an engine with options."""
    return msgspec.structs.replace(SPEC, engine=engine, options=options)


def request(ticket: int, tokens: int = 5, prompt: list[int] = HELLO) -> ipc.Submit:
    """Ask for greedy tokens."""
    return ipc.Submit(
        "",
        TokenRequest(
            ticket=ticket,
            prompt_ids=prompt,
            max_new_tokens=tokens,
            ignore_eos=True,
            sampling=SamplingParams(temperature=0.0),
        ),
    )


def right(tokens: int, prompt: list[int] = HELLO) -> list[int]:
    """Say what the mock must answer."""
    return expected_tokens(prompt, tokens, ignore_eos=True)


@dataclass
class EngineFleet:
    """What has been said so far, by device; each time is of this process's monotonic clock."""

    supervisor: EngineSupervisor
    woken: asyncio.Event
    said: dict[str, list[ipc.FromEngine]] = field(default_factory=dict[str, "list[ipc.FromEngine]"])
    heard_at: dict[str, float] = field(default_factory=dict[str, float])
    exits: list[tuple[str, str, bool]] = field(default_factory=list[tuple[str, str, bool]])
    pids: set[int] = field(default_factory=set[int])

    def look(self) -> None:
        """Take in everything there is."""
        self.woken.clear()
        for device, messages in self.supervisor.receive():
            self.said.setdefault(device, []).extend(messages)
            self.heard_at[device] = time.monotonic()
        self.exits += self.supervisor.exits()
        self.pids |= set(self.supervisor.pids.values())

    async def until(self, condition: Callable[[], T], what: str = "it") -> T:
        """Take in what comes until the condition gives something true, and return that."""
        give_up_at = time.monotonic() + WITHIN_S
        while True:
            self.look()
            found = condition()
            if found:
                return found
            left_s = give_up_at - time.monotonic()
            assert left_s > 0, f"{what} did not happen; said: {self.said}, exits: {self.exits}"
            try:
                await asyncio.wait_for(self.woken.wait(), min(left_s, 0.1))
            except TimeoutError:
                continue

    async def ready(self, device: str = "mock:0") -> list[ipc.EngineService]:
        """Wait until the engine has loaded (the newest process, if there were several); return its services."""
        return (await self.until(lambda: self.of(ipc.EngineReady, device), "loading"))[-1].services

    async def exit(self) -> tuple[str, str, bool]:
        """Wait for the end of a process and return it, once."""
        await self.until(lambda: self.exits, "an exit")
        return self.exits.pop(0)

    def forget(self, device: str = "mock:0") -> None:
        """Drop what the device has said."""
        self.said.pop(device, None)

    def of(self, kind: type[M], device: str = "mock:0") -> list[M]:
        """Return the messages of one kind."""
        return [one for one in self.said.get(device, []) if isinstance(one, kind)]

    def events(self, ticket: int, device: str = "mock:0") -> list[TokenEvent]:
        """Return what happened to a token request."""
        return [event for step in self.of(ipc.StepReport, device) for event in step.events if event.ticket == ticket]

    def tokens(self, ticket: int, device: str = "mock:0") -> list[int]:
        """Return the tokens of a request."""
        return [token for event in self.events(ticket, device) for token in event.token_ids]

    def is_over(self, ticket: int, device: str = "mock:0") -> bool:
        """Whether a token request has had its last event."""
        return any(event.finish_reason for event in self.events(ticket, device))

    def results(self, device: str = "mock:0") -> dict[int, ItemResult]:
        """Return the results of batches by ticket."""
        return {result.ticket: result for step in self.of(ipc.StepReport, device) for result in step.results}

    def stats(self, device: str = "mock:0") -> dict[str, EngineStats]:
        """Return the last counters of each service: a step tells of those that have moved."""
        return {name: stats for step in self.of(ipc.StepReport, device) for name, stats in step.stats.items()}

    def text(self, ticket: int) -> list[str]:
        """Return the pieces of text of a ticket."""
        return [one.text for one in self.of(ipc.TextChunk) if one.ticket == ticket and not one.done]

    def ends(self, ticket: int) -> list[ipc.TextChunk]:
        """Return the last chunks of a ticket: there must never be two."""
        return [one for one in self.of(ipc.TextChunk) if one.ticket == ticket and one.done]

    def send(self, *messages: ipc.ToEngine, device: str = "mock:0") -> None:
        """Send one envelope."""
        self.supervisor.send(device, messages)


def drive(of: EngineSpec, play: Callable[[EngineFleet], Awaitable[Any]], devices: int = 1) -> None:
    """Run engine processes while the test plays the agent; afterwards none may be left."""

    async def run() -> None:
        woken = asyncio.Event()
        here = [DeviceSpec(id=f"mock:{number}", kind="mock") for number in range(devices)]
        supervisor = EngineSupervisor(of, here, wake=woken.set)
        fleet = EngineFleet(supervisor, woken)
        async with supervisor:
            fleet.look()
            await play(fleet)
        assert not alive(list(fleet.pids))

    asyncio.run(run())


def alive(pids: Sequence[int]) -> list[int]:
    """Return those that run; one that nobody has waited for yet has ended."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
