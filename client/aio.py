"""The library for asyncio, in any event loop: no `add_reader`, only `call_soon_threadsafe`, so Proactor and uvloop do.

Verbs that wait are coroutines; those that only start something (`stream`, `submit`) are plain. Cancelling a task that
waits for an answer cancels the request.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Generic, Self, TypeVar, Unpack, overload

from ..protocol import messages as m
from ..protocol import tasks
from ..protocol.admin import AdminOutcome
from ..protocol.errors import ZmqrtError
from ..protocol.limits import MAX_OUTSTANDING
from ..protocol.request_trace import RequestTrace
from ..protocol.snapshot import ServiceStatus, Snapshot
from . import arguments, calls, queries, tracing
from .async_inbox import AsyncMailbox, LoopWakeup
from .calls import CallOptions, GenerateOptions
from .config import DEFAULT_BROKER, ClientConfig, ClientSettings, make_config
from .io_thread import IoThread
from .queries import QuerySpec
from .reading import ResponseReader, read_generation, read_unary
from .results import Chunk, Embeddings, Result, read_embeddings

R = TypeVar("R")


class AsyncHandle(Generic[R]):
    """A request that is under way, to be read by one task at a time."""

    def __init__(
        self, client: AsyncClient, io: IoThread, bell: LoopWakeup, call: calls.Call, reading: ResponseReader[R]
    ) -> None:
        self._client = client  # a client nobody else holds must not end before its answer is here
        self._io = io
        self._reading = reading
        self._mailbox = AsyncMailbox(bell)
        self._call, self._sink = tracing.begin(call, self._mailbox)
        if isinstance(self._sink, tracing.TracedSink):
            weakref.finalize(self, self._sink.trace.cancel)
        try:
            io.submit(self._call, self._sink)
        except ZmqrtError as error:
            self._sink.put(error)  # for whoever traces it; nobody reads it any more
            raise

    @property
    def request_id(self) -> str:
        """Name of the request in logs and errors."""
        return self._call.request_id

    @property
    def rid(self) -> bytes:
        """Sixteen bytes that name the request on the wire."""
        return self._call.rid

    def done(self) -> bool:
        """Say whether the end has been read."""
        return self._reading.is_done

    def cancel(self) -> None:
        """Give the request up; its node stops. ResponseReader on raises CancelledError."""
        if not self._reading.is_done:
            self._io.cancel(self._call.rid, self._sink)
            if isinstance(self._sink, tracing.TracedSink):
                self._sink.trace.cancel()

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the end of the request and return its result.

        Raises:
            TimeoutError: not ready within `timeout` seconds; the request goes on.
            RequestError: it ended without a result.
        """
        arguments.wait("timeout", timeout)
        async with asyncio.timeout(timeout) if timeout is not None else nullcontext():
            while not self._reading.is_done:
                self._reading.feed(await self._mailbox.take())
        return self._reading.outcome()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """Read the chunks of a stream (`stream=True`); afterwards `result()` returns at once."""
        if not self._call.flags & m.STREAM:
            raise TypeError("this request does not stream; submit it with stream=True")
        while (chunk := await self.next_chunk()) is not None:
            yield chunk

    async def next_chunk(self) -> Chunk | None:
        """Wait for the next chunk; None at the end. Raises RequestError if it ended without a result."""
        while not self._reading.is_done:
            chunk = self._reading.feed(await self._mailbox.take())
            if chunk is not None:
                return chunk
        self._reading.outcome()
        return None


class AsyncStream:
    """An iterator over the chunks of one answer. Leaving its `async with` block early cancels the request."""

    def __init__(self, handle: AsyncHandle[Result]) -> None:
        self._handle = handle
        self._result: Result | None = None

    @property
    def request_id(self) -> str:
        """Name of the request in logs and errors."""
        return self._handle.request_id

    @property
    def result(self) -> Result | None:
        """The whole result, once the last chunk has been read; None before."""
        return self._result

    def cancel(self) -> None:
        """Give the request up; reading on raises CancelledError."""
        self._handle.cancel()

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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._handle.cancel()  # a loop left by `break` must not leave a node at work


class AsyncClient:
    """A connection to a fleet, through one broker at a time; with several given, the next takes over.

    Entering it (`async with`) connects, or raises ConnectError naming the cause; without, the first use does. The
    arguments are those of `Client`.
    """

    def __init__(
        self,
        brokers: str | Sequence[str] = DEFAULT_BROKER,
        *,
        keys: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        total_s: float | None = None,
        default_model: str | None = None,
        name: str = "python",
        max_outstanding: int = MAX_OUTSTANDING,
        as_admin: bool = False,
    ) -> None:
        self._use(
            make_config(
                brokers,
                keys=keys,
                insecure=insecure,
                connect_timeout_s=connect_timeout_s,
                timeout_s=timeout_s,
                total_s=total_s,
                default_model=default_model,
                name=name,
                max_outstanding=max_outstanding,
                as_admin=as_admin,
            )
        )

    def _use(self, config: ClientConfig) -> None:
        self._defaults = calls.Defaults(timeout_s=config.timeout_s, total_s=config.total_s, model=config.default_model)
        self._connect_s = config.connect_timeout_s + 1.0  # the connection's own verdict comes first
        self._io = IoThread(config)
        self._finalizer = weakref.finalize(self, self._io.stop)
        self._bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWakeup] = weakref.WeakKeyDictionary()

    @classmethod
    def from_settings(
        cls, settings: ClientSettings, *, name: str = "python", max_outstanding: int = MAX_OUTSTANDING
    ) -> Self:
        """Make a client from settings (flags, environment, file)."""
        return cls(
            settings.broker,
            keys=settings.keys,
            insecure=settings.insecure,
            connect_timeout_s=settings.connect_timeout_s,
            timeout_s=settings.timeout_s,
            total_s=settings.total_timeout_s,
            default_model=settings.default_model,
            name=name,
            max_outstanding=max_outstanding,
            as_admin=True,
        )

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Wait until a broker answers. Raises ConnectError naming what is in the way."""
        await self._ask(queries.connection(), timeout_s=self._connect_s)

    async def close(self) -> None:
        """Cancel what is under way and end the I/O thread. A closed client cannot be used again."""
        await asyncio.shield(asyncio.to_thread(self._finalizer))

    @property
    def endpoint(self) -> str | None:
        """The broker in use; None while there is none."""
        return self._io.endpoint

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
        call = calls.generate(self._defaults, prompt, stream=stream, options=options)
        return AsyncHandle(self, self._io, self._bell(), call, read_generation(call.request_id, stream=stream))

    async def embed(
        self,
        input: calls.Text,  # noqa: A002 - the name of the field, here as on the wire and in the OpenAI API
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[array[float]]:
        """Turn texts into vectors (`array('f')`), one for each input; a single text gives a list of one."""
        call = calls.embed(self._defaults, input, dimensions=dimensions, truncate=truncate, options=options)
        handle = AsyncHandle(self, self._io, self._bell(), call, read_unary(call.request_id, read_embeddings))
        return (await self._finish(handle)).vectors

    @overload
    def submit_task(
        self, task: tasks.Generate, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Result]: ...

    @overload
    def submit_task(
        self, task: tasks.Embed, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Embeddings]: ...

    def submit_task(
        self, task: tasks.Task, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> AsyncHandle[Result] | AsyncHandle[Embeddings]:
        """Start a task made elsewhere and already checked (`tasks.check`); `rid` makes equal requests one."""
        call = calls.make_call(self._defaults, task, stream=stream, rid=rid, **options)
        if isinstance(task, tasks.Generate):
            return AsyncHandle(self, self._io, self._bell(), call, read_generation(call.request_id, stream=stream))
        return AsyncHandle(self, self._io, self._bell(), call, read_unary(call.request_id, read_embeddings))

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

    def _bell(self) -> LoopWakeup:
        loop = asyncio.get_running_loop()
        bell = self._bells.get(loop)
        if bell is None:
            bell = self._bells[loop] = LoopWakeup(loop)
        return bell

    async def _ask(self, question: QuerySpec[R], *, timeout_s: float | None = None) -> R:
        mailbox = AsyncMailbox(self._bell())
        self._io.ask(question.message, mailbox, timeout_s=timeout_s or self._defaults.timeout_s)
        event = await mailbox.take()
        if isinstance(event, ZmqrtError):
            raise event
        assert isinstance(event, m.Welcome | m.Status)
        return question.read(event)

    async def _finish(self, handle: AsyncHandle[R]) -> R:
        try:
            return await handle.result()
        except BaseException:
            handle.cancel()  # the task was cancelled: nobody waits for it any more
            raise
