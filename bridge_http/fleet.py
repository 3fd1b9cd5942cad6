"""What the bridge needs of the client library, and no more: so a test can stand in for a fleet."""

from __future__ import annotations

from typing import Protocol, Unpack

from ..client.calls import CallOptions
from ..client.results import Chunk, Result
from ..protocol.snapshot import Snapshot
from ..protocol.tasks import Generate


class Handle(Protocol):
    """A request that is under way."""

    def cancel(self) -> None:
        """Give it up; nothing happens where it has ended."""
        ...

    async def result(self) -> Result:
        """Wait for the end. Raises RequestError or ConnectError."""
        ...

    async def next_chunk(self) -> Chunk | None:
        """Wait for the next part of a stream; None at the end."""
        ...


class Fleet(Protocol):
    """A client of the brokers."""

    def submit_task(
        self, task: Generate, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle:
        """Start a request."""
        ...

    async def status(self) -> Snapshot:
        """Ask how the fleet is."""
        ...
