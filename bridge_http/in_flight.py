"""Starts requests for HTTP callers under the right name, and gives them up when nobody waits any more.

What a caller may say about a request beside its body stands in headers, for /infer and the OpenAI paths alike:
`Idempotency-Key` makes equal requests one, `X-Request-Id` names it, `X-Request-Timeout` gives it another time than the
settings do, `X-Priority` lets it wait for others, `traceparent` goes along to the node. A caller who leaves ends the
work at once; with an Idempotency-Key only after a while, since it may come back for the rest.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from starlette.types import Receive, Scope

from ..client.calls import CallOptions
from ..client.response import Chunk, Embeddings, Result
from ..client.scoring import Classification, Ranking
from ..protocol.errors import ErrorKind, RequestError, request_error
from ..protocol.limits import MAX_EXT_VALUE_CHARS
from ..protocol.priority import CLASSES, LOWEST, NUMBERS, class_of
from ..protocol.tasks import Classify, Embed, Generate, Rerank, Task
from .access import KEY, Caller
from .broker_client import BrokerClient, RequestHandle
from .config import BridgeSettings
from .errors import BadApiKeyError, BadHeaderError, ForbiddenModelError, HttpError
from .key_ring import WhyNot
from .metering import UsageMeter
from .metrics import Metrics
from .request_body import unless_gone
from .sse import KeepAlives

_MOST_BEGUN: Final = 4096
"""Requests with a key whose beginning is remembered, some 200 bytes each: about what a broker keeps of answers."""
RETURN_S: Final = 5.0
"""How long a request with an Idempotency-Key goes on after its caller has left."""
_NUMBER: Final = re.compile(r"-?[0-9]{1,3}")
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_LEAST_S: Final = 0.001
R = TypeVar("R")


class HttpRequest(NamedTuple):
    """A request for work, as its endpoint sees it. `traceparent` is that of our own span, where there is one."""

    path: str
    headers: Mapping[str, str]
    scope: Scope
    receive: Receive
    caller: Caller
    traceparent: str


class InFlightRequest(Generic[R]):
    """One request under way, as its caller sees it."""

    _ended_by: HttpError | None = None
    _first_s: float | None = None

    def __init__(self, in_flight: InFlight, handle: RequestHandle[R], request: HttpRequest) -> None:
        self._in_flight = in_flight
        self._handle: RequestHandle[R] = handle
        self.name = request.caller.tenant, request.caller.request_id
        self._may_return = "idempotency-key" in request.headers
        self._began_at = time.monotonic()
        self.key = request.caller.key

    @property
    def is_done(self) -> bool:
        """Whether its end has been read."""
        return self._handle.done()

    @property
    def has_begun(self) -> bool:
        """Whether parts of a stream have come."""
        return self._first_s is not None

    async def whole(self, request: HttpRequest) -> R:
        """Wait for the end, and stop waiting as soon as the caller leaves (ClientDisconnect)."""
        try:
            return await unless_gone(self.result(), request.scope, request.receive)
        finally:
            self.close()

    async def result(self) -> R:
        """Wait for the end. Raises RequestError or ConnectError."""
        try:
            result = await self._handle.result()
        except RequestError as error:
            raise self._ended_by or _out_of_time(error, self._in_flight.settings) from None
        if isinstance(result, Result) and self._first_s is not None:
            self._in_flight.metrics.streamed(result, self._first_s)
        return result

    async def next_chunks(self) -> list[Chunk]:
        """Wait for the next parts of a stream; none at the end."""
        try:
            chunks = await self._handle.next_chunks()
        except RequestError as error:
            raise self._ended_by or _out_of_time(error, self._in_flight.settings) from None
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began_at
        return chunks

    def cancel(self) -> None:
        """Give it up now, because its caller says so."""
        self._handle.cancel()

    def end(self, error: HttpError) -> None:
        """Give it up now, and tell its caller why."""
        self._ended_by = error
        self._handle.cancel()

    def close(self) -> None:
        """Note that nobody waits here any more: for its end, or because the caller has left."""
        if not self.is_done:
            self._in_flight.metrics.left("streaming" if self.has_begun else "waiting")
        self.release()

    def release(self) -> None:
        """End it, or leave it a while to a caller who may return; whether one has left is noted elsewhere."""
        if self._may_return and not self.is_done:
            asyncio.get_running_loop().call_later(RETURN_S, self._end)
        else:
            self._end()

    def _end(self) -> None:
        self._in_flight.forget(self.name, self)
        self._handle.cancel()  # nothing happens where it has ended


class InFlight:
    """Starts requests, and knows those under way by tenant and request id, so that they can be given up by name."""

    def __init__(self, broker: BrokerClient, settings: BridgeSettings, metrics: Metrics, meter: UsageMeter) -> None:
        self.metrics = metrics
        self._meter = meter
        self.settings = settings
        self.keep_alives = KeepAlives()
        self._broker = broker
        self._under_way: dict[tuple[str, str], list[InFlightRequest[Any]]] = {}
        self._begun: OrderedDict[bytes, int] = OrderedDict()

    def generate(
        self,
        task: Generate,
        request: HttpRequest,
        *,
        stream: bool,
        model: str | None = None,
        is_v1: bool = False,
        choice: int = 0,
        is_further: bool = False,
    ) -> InFlightRequest[Result]:
        """Start a generation; close what is returned. Raises BadHeaderError and what the library raises.

        `is_v1`: by the locked contract, where the time of a whole answer is its whole time. `choice`: which it is of
        several for one caller, `is_further`: and another one has the same prompt.
        """
        options = self._options(request, model, self.settings.default_model)
        if is_v1 and not stream:
            options["total_s"] = options.get("timeout_s")
        rid = _rid_of_choice(request.caller.rid, choice) if choice else request.caller.rid

        def submit() -> RequestHandle[Result]:
            return self._broker.submit_task(task, stream=stream, rid=rid, **options)

        return self._remember(self._metered(submit, task, request, options, rid, is_further=is_further), request)

    def embed(self, task: Embed, request: HttpRequest, *, model: str | None = None) -> InFlightRequest[Embeddings]:
        """Start an embedding; close what is returned. Raises BadHeaderError and what the library raises."""
        options = self._options(request, model)

        def submit() -> RequestHandle[Embeddings]:
            return self._broker.submit_task(task, rid=request.caller.rid, **options)

        return self._remember(self._metered(submit, task, request, options, request.caller.rid), request)

    def rerank(self, task: Rerank, request: HttpRequest, *, model: str | None = None) -> InFlightRequest[Ranking]:
        """Start a reranking; close what is returned. Raises as `embed`."""
        options = self._options(request, model)

        def submit() -> RequestHandle[Ranking]:
            return self._broker.submit_task(task, rid=request.caller.rid, **options)

        return self._remember(self._metered(submit, task, request, options, request.caller.rid), request)

    def classify(
        self, task: Classify, request: HttpRequest, *, model: str | None = None
    ) -> InFlightRequest[Classification]:
        """Start a classification; close what is returned. Raises as `embed`."""
        options = self._options(request, model)

        def submit() -> RequestHandle[Classification]:
            return self._broker.submit_task(task, rid=request.caller.rid, **options)

        return self._remember(self._metered(submit, task, request, options, request.caller.rid), request)

    def begun_at(self, request: HttpRequest) -> int:
        """Return when it was asked for first, in seconds since 1970: an answer given again is as old as it was."""
        if not idempotency_key(request):
            return int(time.time())
        at = self._begun.setdefault(request.caller.rid, int(time.time()))
        if len(self._begun) > _MOST_BEGUN:
            self._begun.popitem(last=False)
        return at

    def cancel(self, tenant: str, request_id: str) -> bool:
        """Give up every request of that name; False if there is none here."""
        found = self._under_way.get((tenant, request_id), [])
        for pending in found:
            pending.cancel()
        return bool(found)

    def end_those_of(self, why_not: WhyNot) -> None:
        """End every request whose key is not let in any more."""
        for pending in [pending for named in self._under_way.values() for pending in named]:
            if pending.key is not None and not pending.is_done and (why := why_not(pending.key)):
                pending.end(BadApiKeyError(why))

    def forget(self, name: tuple[str, str], pending: InFlightRequest[R]) -> None:
        """Drop a request that is over, or that nobody comes back for."""
        here = self._under_way.get(name, [])
        if pending in here:
            here.remove(pending)
        if not here:
            self._under_way.pop(name, None)

    def _metered(
        self,
        submit: Callable[[], RequestHandle[R]],
        task: Task,
        request: HttpRequest,
        options: CallOptions,
        rid: bytes,
        *,
        is_further: bool = False,
    ) -> RequestHandle[R]:
        """Start a request, when it has its reservation if it needs one."""
        if not self._meter.wants(request.caller.key):
            return submit()
        is_first, is_named = rid == request.caller.rid, bool(idempotency_key(request))
        model = options.get("model") or ""
        return self._meter.start(
            submit,
            task,
            request.caller,
            rid=rid,
            model=model,
            is_first=is_first,
            is_named=is_named,
            is_further=is_further,
        )

    def _remember(self, handle: RequestHandle[R], request: HttpRequest) -> InFlightRequest[R]:
        pending = InFlightRequest(self, handle, request)
        self._under_way.setdefault(pending.name, []).append(pending)
        return pending

    def _options(self, request: HttpRequest, model: str | None, default: str | None = None) -> CallOptions:
        if "idempotency-key" in request.headers:
            idempotency_key(request)  # one that cannot be meant is refused before anything is sent
        options = CallOptions(
            model=_allowed(request, model, default),
            timeout_s=asked_timeout_s(request, self.settings),
            total_s=self.settings.request_total_timeout_s,
            request_id=request.caller.request_id,
            traceparent=_traceparent(request),
            retries=0,  # the caller is told when to come back, and holds nothing open here meanwhile
        )
        key = request.caller.key
        if key is not None:
            options["party"] = _party(key.tenant, key.name)
        if priority := asked_priority(request):
            options["priority"] = priority
        return options


def _rid_of_choice(rid: bytes, choice: int) -> bytes:
    """Name a further request of the same caller: by the name of the first, so that an Idempotency-Key names all."""
    return hashlib.sha256(rid + choice.to_bytes(4, "big")).digest()[: len(rid)]


@functools.lru_cache(4096)
def _party(tenant: str, name: str) -> str:
    """Return for whom a request is: tenants wait in turn, and users of each. The broker need not know their names."""
    shared = hashlib.sha256(tenant.encode()).hexdigest()[:16]
    return f"{shared}/{hashlib.sha256(name.encode()).hexdigest()[:16]}" if name else shared


def asked_priority(request: HttpRequest) -> int:
    """Return how soon a request is due: as its key has it, or lower if its caller says so. Raises BadHeaderError."""
    key, given = request.caller.key, request.headers.get("x-priority")
    most = NUMBERS[key.priority] if key is not None else -LOWEST
    if given is None:
        return most if key is not None else 0
    if _NUMBER.fullmatch(given):
        asked = int(given)
    elif (word := class_of(given.strip().lower())) is not None:
        asked = NUMBERS[word]
    else:
        asked = -2 * LOWEST
    if abs(asked) > -LOWEST:
        words = ", ".join(CLASSES)
        raise BadHeaderError(
            "x-priority", f"{words} or a number from {LOWEST} to {-LOWEST} is meant, not {given[:64]!r}"
        )
    return min(asked, most)


def _allowed(request: HttpRequest, model: str | None, default: str | None) -> str | None:
    """Return the model that is asked, if its caller may ask it. Raises ForbiddenModelError."""
    key = request.caller.key
    if key is None or not key.models:
        return model or default
    only = key.models[0] if len(key.models) == 1 and not set("*?[") & set(key.models[0]) else None
    model = model or (default if default and key.may_ask(default) else only)
    if model is None or not key.may_ask(model):
        raise ForbiddenModelError(model, key.models, request.path)
    return model


def _traceparent(request: HttpRequest) -> str | None:
    """Return the trace context: of our own span, else the caller's. One that is too long is ignored, as W3C has it."""
    given = request.traceparent or request.headers.get("traceparent", "")
    return given if 0 < len(given) <= MAX_EXT_VALUE_CHARS else None


def idempotency_key(request: HttpRequest) -> str:
    """Return the caller's key, or "". Raises BadHeaderError."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return ""
    if not KEY.fullmatch(key):
        raise BadHeaderError("idempotency-key", "1 to 255 printable ASCII characters are meant")
    return key


def asked_timeout_s(request: HttpRequest, settings: BridgeSettings) -> float:
    """Return the caller's time in seconds, as far as the settings allow it, else theirs. Raises BadHeaderError."""
    given = request.headers.get("x-request-timeout")
    if given is None:
        return settings.request_timeout_s
    if not _SECONDS.fullmatch(given) or float(given) < _LEAST_S:
        raise BadHeaderError("x-request-timeout", f"a number of seconds is meant, such as 120, not {given[:64]!r}")
    # The settings' own time is nobody's to lose, even if it is above what may be asked for.
    return min(float(given), max(settings.max_request_timeout_s, settings.request_timeout_s))


def _out_of_time(error: RequestError, settings: BridgeSettings) -> RequestError:
    """Name what would have given it more time."""
    if error.kind not in (ErrorKind.DEADLINE, ErrorKind.STALLED):
        return error
    text = (
        f"{error.text}. REQUEST_TIMEOUT_SEC (--request-timeout) of this bridge is {settings.request_timeout_s:g} s; a "
        f"request may ask for up to {settings.max_request_timeout_s:g} s (--max-request-timeout) with the header "
        "X-Request-Timeout"
    )
    return request_error(error.kind, text, request_id=error.request_id, resume_n=error.resume_n)
