"""The library for plain threads. One client serves all threads of a process; its verbs may be called from any of them.

Waiting happens on a queue of each request, filled by the one I/O thread; there is no loop and no lock here.
"""

from __future__ import annotations

import os
import time
import weakref
from array import array
from collections.abc import Iterator, Sequence
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
from .calls import CallOptions, GenerateOptions
from .config import DEFAULT_BROKER, ClientConfig, ClientSettings, make_config
from .io_thread import IoThread
from .mailbox import Mailbox
from .queries import QuerySpec
from .reading import ResponseReader, read_generation, read_unary
from .results import Chunk, Embeddings, Result, read_embeddings

R = TypeVar("R")


class Handle(Generic[R]):
    """A request that is under way. To be read by one thread at a time; `cancel` may be called by any."""

    def __init__(self, client: Client, io: IoThread, call: calls.Call, reading: ResponseReader[R]) -> None:
        self._client = client  # a client nobody else holds must not end before its answer is here
        self._io = io
        self._reading = reading
        self._mailbox = Mailbox()
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

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end of the request and return its result.

        Raises:
            TimeoutError: not ready within `timeout` seconds; the request goes on.
            RequestError: it ended without a result.
        """
        arguments.wait("timeout", timeout)
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while not self._reading.is_done:
            left_s = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
            try:
                self._reading.feed(self._mailbox.take(self._io, left_s))
            except TimeoutError:
                raise TimeoutError(f"no result within {timeout} s; the request goes on") from None
        return self._reading.outcome()

    def __iter__(self) -> Iterator[Chunk]:
        """Read the chunks of a stream (`stream=True`); afterwards `result()` returns at once."""
        if not self._call.flags & m.STREAM:
            raise TypeError("this request does not stream; submit it with stream=True")
        while (chunk := self.next_chunk()) is not None:
            yield chunk

    def next_chunk(self) -> Chunk | None:
        """Wait for the next chunk; None at the end. Raises RequestError if it ended without a result."""
        while not self._reading.is_done:
            chunk = self._reading.feed(self._mailbox.take(self._io))
            if chunk is not None:
                return chunk
        self._reading.outcome()
        return None


class Stream:
    """An iterator over the chunks of one answer. Leaving its `with` block before the end cancels the request."""

    def __init__(self, handle: Handle[Result]) -> None:
        self._handle = handle

    @property
    def request_id(self) -> str:
        """Name of the request in logs and errors."""
        return self._handle.request_id

    @property
    def result(self) -> Result | None:
        """The whole result, once the last chunk has been read; None before."""
        return self._handle.result() if self._handle.done() else None

    def cancel(self) -> None:
        """Give the request up; reading on raises CancelledError."""
        self._handle.cancel()

    def close(self) -> None:
        """Stop: what has not ended is cancelled."""
        self._handle.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        chunk = self._handle.next_chunk()
        if chunk is None:
            raise StopIteration
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # `for chunk in client.stream(…): break` must not leave a node at work


class Client:
    """A connection to a fleet, through one broker at a time; with several given, the next takes over.

    Entering it (`with`) connects, or raises ConnectError naming the cause; without, the first use does.

    Args:
        brokers: One endpoint, several, or several in one string, parted by commas.
        keys: Folder with the client's keys and the broker's public one, as `zmqrt keygen` makes it.
        insecure: Go without keys even off this machine.
        connect_timeout_s: Longest wait for a broker to answer.
        timeout_s: Longest time without progress of an answer, whole or streamed; verbs may set their own.
        total_s: Longest time of an answer in all; None = as long as it makes progress.
        default_model: Asked when a verb names none; else the only one there is for the task.
        name: What the broker's status calls this client.
        max_outstanding: Requests at the broker at once, as far as it allows; the rest waits here.
        as_admin: Use the admin's pair in the folder of keys, where there is one; the `zmqrt` command does.
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

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Wait until a broker answers. Raises ConnectError naming what is in the way."""
        self._ask(queries.connection(), timeout_s=self._connect_s)

    def close(self) -> None:
        """Cancel what is under way and end the I/O thread. A closed client cannot be used again."""
        self._finalizer()

    @property
    def endpoint(self) -> str | None:
        """The broker in use; None while there is none."""
        return self._io.endpoint

    def infer(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> Result:
        """Generate text and return it whole.

        Busy and unavailable answers are asked again, as the broker advises, while there is time (`retries=0`: not).

        Raises:
            RequestError: its class and `.kind` tell why there is no result.
            ConnectError: no broker answers.
        """
        return self._finish(self.submit(prompt, **options))

    def stream(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> Stream:
        """Generate text and read it as it is made; best in a `with` block, which cancels when left early."""
        return Stream(self.submit(prompt, stream=True, **options))

    def submit(
        self, prompt: str | None = None, *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> Handle[Result]:
        """Start a generation and return at once."""
        call = calls.generate(self._defaults, prompt, stream=stream, options=options)
        return Handle(self, self._io, call, read_generation(call.request_id, stream=stream))

    def embed(
        self,
        input: calls.Text,  # noqa: A002 - the name of the field, here as on the wire and in the OpenAI API
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[array[float]]:
        """Turn texts into vectors (`array('f')`), one for each input; a single text gives a list of one."""
        call = calls.embed(self._defaults, input, dimensions=dimensions, truncate=truncate, options=options)
        handle = Handle(self, self._io, call, read_unary(call.request_id, read_embeddings))
        return self._finish(handle).vectors

    @overload
    def submit_task(
        self, task: tasks.Generate, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Result]: ...

    @overload
    def submit_task(
        self, task: tasks.Embed, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Embeddings]: ...

    def submit_task(
        self, task: tasks.Task, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Result] | Handle[Embeddings]:
        """Start a task made elsewhere and already checked (`tasks.check`); `rid` makes equal requests one."""
        call = calls.make_call(self._defaults, task, stream=stream, rid=rid, **options)
        if isinstance(task, tasks.Generate):
            return Handle(self, self._io, call, read_generation(call.request_id, stream=stream))
        return Handle(self, self._io, call, read_unary(call.request_id, read_embeddings))

    def status(self) -> Snapshot:
        """Ask the broker how it and its nodes are."""
        return self._ask(queries.status())

    def explain(self, request: str) -> list[RequestTrace]:
        """Ask what happened to a request, by its rid or its request id: the newest of that name first.

        Live requests and the last 2,048 that ended are known to the broker in use; an empty list: not this one. Keys
        that are not marked admin are told of their own requests alone.
        """
        return self._ask(queries.explain(request))

    def models(self) -> list[ServiceStatus]:
        """Ask the broker which models it can reach."""
        return self._ask(queries.services())

    def drain(self, node_id: str) -> AdminOutcome:
        """Have a node take nothing more, finish or hand over what runs, and leave; returns once it has been asked.

        The broker in use asks it, and the node leaves all its brokers. `status()` shows it until it is gone.

        Raises:
            UnauthorizedError: this client's key is not marked admin.
            NotFoundError: the broker knows no such node; the text lists those it knows.
            UnavailableError: the node is lost or evicted, so it cannot be asked.
        """
        return self._ask(queries.drain(node_id))

    def _ask(self, question: QuerySpec[R], *, timeout_s: float | None = None) -> R:
        mailbox = Mailbox()
        self._io.ask(question.message, mailbox, timeout_s=timeout_s or self._defaults.timeout_s)
        event = mailbox.take(self._io)
        if isinstance(event, ZmqrtError):
            raise event
        assert isinstance(event, m.Welcome | m.Status)
        return question.read(event)

    def _finish(self, handle: Handle[R]) -> R:
        try:
            return handle.result()
        except BaseException:
            handle.cancel()  # Ctrl-C: nobody waits for it any more
            raise
