"""What the bridge needs of the client library, and no more: so a test can stand in for a fleet."""

from __future__ import annotations

from typing import Protocol, TypeVar, Unpack, overload

from ..client.calls import CallOptions
from ..client.response import Chunk, Embeddings, Result
from ..client.scoring import Classification, Ranking
from ..protocol.snapshot import Snapshot
from ..protocol.tasks import Classify, Embed, Generate, Rerank

R_co = TypeVar("R_co", covariant=True)


class RequestHandle(Protocol[R_co]):
    """A request that is under way."""

    def cancel(self) -> None:
        """Give it up; nothing happens where it has ended."""
        ...

    def done(self) -> bool:
        """Return whether its end has been read."""
        ...

    async def result(self) -> R_co:
        """Wait for the end. Raises RequestError or ConnectError."""
        ...

    async def next_chunks(self) -> list[Chunk]:
        """Wait for the next parts of a stream; none at the end."""
        ...


class BrokerClient(Protocol):
    """A client of the brokers."""

    @overload
    def submit_task(
        self, task: Generate, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> RequestHandle[Result]: ...

    @overload
    def submit_task(
        self, task: Embed, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> RequestHandle[Embeddings]: ...

    @overload
    def submit_task(
        self, task: Rerank, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> RequestHandle[Ranking]: ...

    @overload
    def submit_task(
        self, task: Classify, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> RequestHandle[Classification]: ...

    async def status(self) -> Snapshot:
        """Ask how the fleet is."""
        ...
