"""The client for plain threads. One client serves all threads of a process; any of them may call its methods.

Each request has a queue that the one I/O thread fills and its reader waits on; there is no loop and no lock here.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeVar, Unpack, overload

from ..protocol import tasks
from ..protocol.admin import AdminOutcome
from ..protocol.request_trace import RequestTrace
from ..protocol.snapshot import ServiceStatus, Snapshot
from . import arguments, queries
from .base import BaseClient, BaseHandle, BaseStream, read_answer, reader_of
from .calls import Call, CallOptions, GenerateOptions, Text, make_call
from .io_base import BaseIo
from .mailbox import ONE_AT_A_TIME, Mailbox
from .queries import QuerySpec
from .response import Chunk, Embeddings, ResponseReader, Result
from .scoring import Classification, RankedDocument, Ranking

R = TypeVar("R")


class Handle(BaseHandle[R]):
    """A request that is under way. One thread at a time may read it (another gets a RuntimeError); any may `cancel`."""

    def __init__(self, client: Client, io: BaseIo, call: Call, reader: ResponseReader[R]) -> None:
        self._mailbox = Mailbox()
        super().__init__(client, io, self._mailbox, call, reader)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end of the request and return its result.

        Raises:
            TimeoutError: not ready within `timeout` seconds; the request goes on.
            RequestError: it ended without a result.
        """
        arguments.wait("timeout", timeout)
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while not self._reader.is_done:
            left_s = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
            try:
                self._read(left_s)
            except TimeoutError:
                raise TimeoutError(f"no result within {timeout} s; the request goes on") from None
        return self._reader.outcome()

    def __iter__(self) -> Iterator[Chunk]:
        """Read the chunks of a stream (`stream=True`); afterwards `result()` returns at once."""
        self._check_streams()
        while (chunk := self.next_chunk()) is not None:
            yield chunk

    def next_chunk(self) -> Chunk | None:
        """Wait for the next chunk; None at the end. Raises RequestError if it ended without a result."""
        while not self._reader.is_done:
            chunk = self._read()
            if chunk is not None:
                return chunk
        self._reader.outcome()
        return None

    def _read(self, timeout_s: float | None = None) -> Chunk | None:
        """Take one event in. Raises TimeoutError, or RuntimeError if another thread waits for it."""
        turn = self._mailbox.turn
        if not turn.acquire(blocking=False):
            raise RuntimeError(ONE_AT_A_TIME)
        try:
            return self._reader.feed(self._mailbox.take(self._io, timeout_s))
        finally:
            turn.release()


class Stream(BaseStream[Handle[Result]]):
    """An iterator over the chunks of one answer. Leaving its `with` block before the end cancels the request."""

    @property
    def result(self) -> Result | None:
        """The whole result, once the last chunk has been read; None before."""
        return self._handle.result() if self._handle.done() else None

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

    def __exit__(self, *_: object) -> None:
        self.close()


class Client(BaseClient):
    """A connection to a fleet, through one broker at a time; with several given, the next takes over.

    Entering it (`with`) connects, or raises ConnectError naming the cause; without, the first use does.
    """

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Wait until a broker answers. Raises ConnectError naming what is in the way."""
        self._ask(queries.connection(), timeout_s=self._connect_s)

    def close(self) -> None:
        """Cancel what is under way and end the I/O thread. A closed client cannot be used again."""
        self._finalizer()

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
        return Handle(self, self._io, *self._generation(prompt, options, stream=stream))

    def embed(
        self,
        input: Text,  # noqa: A002 - the name of the field, here as on the wire and in the OpenAI API
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[array[float]]:
        """Turn texts into vectors (`array('f')`), one for each input; a single text gives a list of one."""
        handle = Handle(self, self._io, *self._embedding(input, dimensions, options, truncate=truncate))
        return self._finish(handle).vectors

    def rerank(
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
        handle = Handle(self, self._io, *self._reranking(query, documents, options, truncate=truncate))
        return self._finish(handle).best(top_n)

    def classify(
        self,
        input: str | Sequence[str],  # noqa: A002 - the name of the field, as above
        *,
        truncate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[dict[str, float]]:
        """Say what a text is: the probability of each label, the likeliest first; for each text of several.

        A single text gives a list of one.
        """
        handle = Handle(self, self._io, *self._classification(input, options, truncate=truncate))
        return self._finish(handle).by_label()

    @overload
    def submit_task(
        self, task: tasks.Generate, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Result]: ...

    @overload
    def submit_task(
        self, task: tasks.Embed, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Embeddings]: ...

    @overload
    def submit_task(
        self, task: tasks.Rerank, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Ranking]: ...

    @overload
    def submit_task(
        self, task: tasks.Classify, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Classification]: ...

    def submit_task(
        self, task: tasks.Task, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Handle[Any]:
        """Start a task made elsewhere and already checked (`tasks.check`); `rid` makes equal requests one."""
        call = make_call(self._config, task, stream=stream, rid=rid, **options)
        return Handle(self, self._io, call, reader_of(task, call.request_id, stream=stream))

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

    def _ask(self, query: QuerySpec[R], *, timeout_s: float | None = None) -> R:
        mailbox = Mailbox()
        self._io.ask(query.message, mailbox, timeout_s=timeout_s or self._config.timeout_s)
        return read_answer(query, mailbox.take(self._io))

    def _finish(self, handle: Handle[R]) -> R:
        try:
            return handle.result()
        except BaseException:
            handle.cancel()  # Ctrl-C: nobody waits for it any more
            raise
