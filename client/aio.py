"""The client for asyncio. It works in any event loop, Proactor and uvloop too: it needs `call_soon_threadsafe` only.

Methods that wait are coroutines; those that only start something (`stream`, `submit`) are plain. Cancelling a task
that waits for an answer cancels the request.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self, TypeVar, Unpack, overload

from ..protocol import tasks
from ..protocol.admin import AdminOutcome
from ..protocol.request_trace import RequestTrace
from ..protocol.snapshot import ServiceStatus, Snapshot
from . import arguments, queries
from .base import BaseClient, BaseHandle, BaseStream, read_answer, reader_of
from .calls import Call, CallOptions, GenerateOptions, Text, make_call
from .io_base import BaseIo
from .mailbox import AsyncMailbox
from .queries import QuerySpec
from .response import Chunk, Embeddings, ResponseReader, Result
from .scoring import Classification, RankedDocument, Ranking
from .wakeup import ReaderWakeup, wakeup_of

R = TypeVar("R")


class AsyncHandle(BaseHandle[R]):
    """A request that is under way. One task at a time may read it; another gets a RuntimeError."""

    def __init__(
        self, client: AsyncClient, io: BaseIo, wakeup: ReaderWakeup, call: Call, reader: ResponseReader[R]
    ) -> None:
        self._mailbox = AsyncMailbox(wakeup)
        super().__init__(client, io, self._mailbox, call, reader)

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the end of the request and return its result.

        Raises:
            TimeoutError: not ready within `timeout` seconds; the request goes on.
            RequestError: it ended without a result.
        """
        if timeout is not None:
            arguments.wait("timeout", timeout)
            async with asyncio.timeout(timeout):
                return await self.result()
        reader = self._reader
        while not reader.is_done:
            reader.feed(await self._mailbox.take())
        return reader.outcome()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Read the chunks of a stream (`stream=True`); afterwards `result()` returns at once."""
        self._check_streams()
        while (chunk := await self.next_chunk()) is not None:
            yield chunk

    async def next_chunk(self) -> Chunk | None:
        """Wait for the next chunk; None at the end. Raises RequestError if it ended without a result."""
        while not self._reader.is_done:
            chunk = self._reader.feed(await self._mailbox.take())
            if chunk is not None:
                return chunk
        self._reader.outcome()
        return None

    async def next_chunks(self) -> list[Chunk]:
        """Wait for the next chunk, and take those that are here with it; none at the end. Raises as `next_chunk`."""
        reader = self._reader
        while not reader.is_done:
            chunks: list[Chunk] = []
            for event in await self._mailbox.take_some():
                if (chunk := reader.feed(event)) is not None:
                    chunks.append(chunk)
                elif reader.is_done:
                    break
            if chunks:
                return chunks
        reader.outcome()
        return []


class AsyncStream(BaseStream[AsyncHandle[Result]]):
    """An iterator over the chunks of one answer. Leaving its `async with` block early cancels the request."""

    def __init__(self, handle: AsyncHandle[Result]) -> None:
        super().__init__(handle)
        self._result: Result | None = None

    @property
    def result(self) -> Result | None:
        """The whole result, once the last chunk has been read; None before."""
        return self._result

    async def aclose(self) -> None:
        """Stop: what has not ended is cancelled."""
        self._handle.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        try:
            chunk = await self._handle.next_chunk()
        except asyncio.CancelledError:
            self._handle.cancel()
            raise
        if chunk is None:
            self._result = await self._handle.result()
            raise StopAsyncIteration
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncClient(BaseClient):
    """A connection to a fleet, through one broker at a time; with several given, the next takes over.

    Entering it (`async with`) connects, or raises ConnectError naming the cause; without, the first use does.
    """

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Wait until a broker answers. Raises ConnectError naming what is in the way."""
        await self._ask(queries.connection(), timeout_s=self._connect_s)

    async def close(self) -> None:
        """Cancel what is under way and end the I/O thread. A closed client cannot be used again."""
        await asyncio.shield(asyncio.to_thread(self._finalizer))

    async def infer(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> Result:
        """Generate text and return it whole.

        Busy and unavailable answers are asked again, as the broker advises, while there is time (`retries=0`: not).

        Raises:
            RequestError: its class and `.kind` tell why there is no result.
            ConnectError: no broker answers.
        """
        return await self._finish(self.submit(prompt, **options))

    def stream(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """Generate text and read it as it is made; best in `async with`, which cancels when left early."""
        return AsyncStream(self.submit(prompt, stream=True, **options))

    def submit(
        self, prompt: str | None = None, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> AsyncHandle[Result]:
        """Start a generation and return at once."""
        return self._start(*self._generation(prompt, options, stream=stream))

    async def embed(
        self,
        input: Text,  # noqa: A002 - the name of the field, here as on the wire and in the OpenAI API
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[array[float]]:
        """Turn texts into vectors (`array('f')`), one for each input; a single text gives a list of one."""
        handle = self._start(*self._embedding(input, dimensions, options, truncate=truncate))
        return (await self._finish(handle)).vectors

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[RankedDocument]:
        """Sort documents by how well they answer a query, the best first; `top_n`: so many of them.

        Each comes by its index among those that were given, with a score from 0 to 1.
        """
        arguments.count("top_n", top_n)
        handle = self._start(*self._reranking(query, documents, options, truncate=truncate))
        return (await self._finish(handle)).best(top_n)

    async def classify(
        self,
        input: str | Sequence[str],  # noqa: A002 - the name of the field, as above
        *,
        truncate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[dict[str, float]]:
        """Say what a text is: the probability of each label, the likeliest first; for each text of several.

        A single text gives a list of one.
        """
        handle = self._start(*self._classification(input, options, truncate=truncate))
        return (await self._finish(handle)).by_label()

    @overload
    def submit_task(
        self, task: tasks.Generate, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Result]: ...

    @overload
    def submit_task(
        self, task: tasks.Embed, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Embeddings]: ...

    @overload
    def submit_task(
        self, task: tasks.Rerank, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Ranking]: ...

    @overload
    def submit_task(
        self, task: tasks.Classify, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Classification]: ...

    def submit_task(
        self, task: tasks.Task, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Any]:
        """Start a task made elsewhere and already checked (`tasks.check`); `rid` makes equal requests one."""
        call = make_call(self._config, task, stream=stream, rid=rid, **options)
        return self._start(call, reader_of(task, call.request_id, stream=stream))

    async def status(self) -> Snapshot:
        """Ask the broker how it and its nodes are."""
        return await self._ask(queries.status())

    async def explain(self, request: str) -> list[RequestTrace]:
        """Ask what happened to a request, by its rid or its request id: the newest of that name first.

        Live requests and the last 2,048 that ended are known to the broker in use; an empty list: not this one. Keys
        that are not marked admin are told of their own requests alone.
        """
        return await self._ask(queries.explain(request))

    async def models(self) -> list[ServiceStatus]:
        """Ask the broker which models it can reach."""
        return await self._ask(queries.services())

    async def drain(self, node_id: str) -> AdminOutcome:
        """Have a node take nothing more, finish or hand over what runs, and leave; returns once it has been asked.

        The broker in use asks it, and the node leaves all its brokers. `status()` shows it until it is gone.

        Raises:
            UnauthorizedError: this client's key is not marked admin.
            NotFoundError: the broker knows no such node; the text lists those it knows.
            UnavailableError: the node is lost or evicted, so it cannot be asked.
        """
        return await self._ask(queries.drain(node_id))

    def _start(self, call: Call, reader: ResponseReader[R]) -> AsyncHandle[R]:
        return AsyncHandle(self, self._io, self._wakeup(), call, reader)

    async def _ask(self, query: QuerySpec[R], *, timeout_s: float | None = None) -> R:
        mailbox = AsyncMailbox(self._wakeup())
        self._io.ask(query.message, mailbox, timeout_s=timeout_s or self._config.timeout_s)
        return read_answer(query, await mailbox.take())

    def _wakeup(self) -> ReaderWakeup:
        return wakeup_of(asyncio.get_running_loop())

    async def _finish(self, handle: AsyncHandle[R]) -> R:
        try:
            return await handle.result()
        except BaseException:
            handle.cancel()  # the task was cancelled: nobody waits for it any more
            raise
