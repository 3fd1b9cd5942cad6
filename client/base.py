"""What `Client` and `AsyncClient` share: settings, the I/O thread, and everything of a request but the waiting."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar

from ..protocol import messages as m
from ..protocol import tasks
from ..protocol.errors import ZmqrtError
from ..protocol.limits import MAX_OUTSTANDING
from . import calls, tracing
from .calls import CallOptions, GenerateOptions
from .config import DEFAULT_BROKER, ClientConfig, ClientSettings, read_client_line, read_endpoints, read_folder
from .io_base import BaseIo
from .io_thread import IoThread
from .queries import QuerySpec
from .requests import Sink
from .response import Embeddings, Event, ResponseReader, Result, read_embeddings, read_generation, read_unary
from .scoring import Classification, Ranking, read_classification, read_ranking

R = TypeVar("R")


class BaseHandle(Generic[R]):
    """A request that is under way."""

    def __init__(
        self, client: BaseClient, io: BaseIo, mailbox: Sink, call: calls.Call, reader: ResponseReader[R]
    ) -> None:
        self._client = client  # a client nobody else holds must not end before its answer is here
        self._io = io
        self._reader = reader
        reader.on_wait = call.on_wait
        self._call, self._sink = tracing.begin(call, mailbox)
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
        return self._reader.is_done

    def cancel(self) -> None:
        """Give the request up; its node stops. Reading on raises CancelledError."""
        if not self._reader.is_done:
            self._io.cancel(self._call.rid, self._sink)
            if isinstance(self._sink, tracing.TracedSink):
                self._sink.trace.cancel()

    def _check_streams(self) -> None:
        if not self._call.flags & m.STREAM:
            raise TypeError("this request does not stream; submit it with stream=True")


H = TypeVar("H", bound=BaseHandle[Result])


class BaseStream(Generic[H]):
    """The chunks of one answer."""

    def __init__(self, handle: H) -> None:
        self._handle = handle

    @property
    def request_id(self) -> str:
        """Name of the request in logs and errors."""
        return self._handle.request_id

    def cancel(self) -> None:
        """Give the request up; reading on raises CancelledError."""
        self._handle.cancel()

    def __del__(self) -> None:
        self._handle.cancel()  # `for chunk in client.stream(…): break` must not leave a node at work


class BaseClient:
    """A connection to a fleet."""

    def __init__(
        self,
        brokers: str | Sequence[str] = DEFAULT_BROKER,
        *,
        keys: str | os.PathLike[str] | None = None,
        join: str | None = None,
        insecure: bool = False,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        total_s: float | None = None,
        default_model: str | None = None,
        name: str = "python",
        max_outstanding: int = MAX_OUTSTANDING,
        as_admin: bool = False,
    ) -> None:
        """Keep the settings; nothing is connected yet.

        Args:
            brokers: One endpoint, several, or several in one string, parted by commas.
            join: A line of `zmqrt keys fleet invite client`: a key, and brokers where no others are named.
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
        line = None if join is None else read_client_line(join)
        if line is not None and brokers == DEFAULT_BROKER:
            brokers = line.brokers
        self._config = ClientConfig(
            endpoints=read_endpoints(brokers),
            keys=read_folder(keys),
            line_keys=None if line is None else line.peer_keys(),
            insecure=insecure,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            total_s=total_s,
            default_model=default_model,
            name=name,
            max_outstanding=max_outstanding,
            as_admin=as_admin,
        )
        self._connect_s = connect_timeout_s + 1.0  # the connection's own verdict comes first
        self._io = self._make_io(self._config)
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

    def _make_io(self, config: ClientConfig) -> BaseIo:
        return IoThread(config)

    @property
    def endpoint(self) -> str | None:
        """The broker in use; None while there is none."""
        return self._io.endpoint

    def _generation(
        self, prompt: str | None, options: GenerateOptions, *, stream: bool
    ) -> tuple[calls.Call, ResponseReader[Result]]:
        call = calls.generate(self._config, prompt, stream=stream, options=options)
        return call, read_generation(call.request_id, stream=stream)

    def _embedding(
        self, given: calls.Text, dimensions: int | None, options: CallOptions, *, truncate: bool
    ) -> tuple[calls.Call, ResponseReader[Embeddings]]:
        call = calls.embed(self._config, given, dimensions=dimensions, truncate=truncate, options=options)
        return call, read_unary(call.request_id, read_embeddings)

    def _reranking(
        self, query: str, documents: Sequence[str], options: CallOptions, *, truncate: bool
    ) -> tuple[calls.Call, ResponseReader[Ranking]]:
        call = calls.rerank(self._config, query, documents, truncate=truncate, options=options)
        return call, read_ranking(call.request_id, len(documents))

    def _classification(
        self, given: str | Sequence[str], options: CallOptions, *, truncate: bool
    ) -> tuple[calls.Call, ResponseReader[Classification]]:
        call = calls.classify(self._config, given, truncate=truncate, options=options)
        return call, read_classification(call.request_id, _count(given))


def reader_of(task: tasks.Task, request_id: str, *, stream: bool) -> ResponseReader[Any]:
    """Return what reads the answer to a task."""
    match task:
        case tasks.Generate():
            return read_generation(request_id, stream=stream)
        case tasks.Embed():
            return read_unary(request_id, read_embeddings)
        case tasks.Rerank():
            return read_ranking(request_id, len(task.documents))
        case tasks.Classify():
            return read_classification(request_id, _count(task.input))


def _count(given: str | Sequence[str]) -> int:
    return 1 if isinstance(given, str) else len(given)


def read_answer(query: QuerySpec[R], event: Event) -> R:
    """Read what came for a query. Raises the error that came instead."""
    if isinstance(event, ZmqrtError):
        raise event
    assert isinstance(event, m.Welcome | m.Status)
    return query.read(event)
