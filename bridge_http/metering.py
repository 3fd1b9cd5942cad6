"""Meters requests: reserves what one may take before it goes out, counts what it took, and refuses what is too much.

Only where there is something to meter: a usage file, or a key with limits. A metered request looks like any other to
whoever waits for it, but goes out when it has its reservation.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from ..client.response import Chunk
from ..protocol import tasks
from ..protocol.api_keys import NO_LIMITS, ApiKey
from ..protocol.errors import ConnectError, ErrorKind, RequestError, request_error
from .access import Caller
from .broker_client import RequestHandle
from .config import BridgeSettings
from .errors import HttpError, LimitError, RefusedError
from .ledger import Reservation, Settlement, Subject, Verdict
from .ledger_thread import LedgerThread, UnrecordedError
from .standing import Standing
from .tenant_metrics import TenantMetrics

R_co = TypeVar("R_co", covariant=True)
_BYTES_PER_TOKEN: Final = 4
ANSWER_TOKENS: Final = 1024
"""Of an answer without a bound: what nodes make at most unless they are told otherwise (--default-max-tokens)."""
_TEMPLATE_BYTES: Final = 64
"""What a chat template may add to a short prompt."""
_ADMISSION_S: Final = 10.0
"""Longest wait for the usage file. Locks of others are waited for less long, so its disk hangs then."""
_MOST_TOKENS: Final = 2**40
"""More than any answer has, and so little that their sums stay numbers of SQLite."""


class UsageMeter:
    """What one bridge meters."""

    def __init__(self, settings: BridgeSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._has_file = settings.usage_file is not None
        self._is_told = self._has_file or settings.audit_log is not None
        self._serves_unrecorded = settings.unrecorded == "serve"
        self.ledger = LedgerThread(settings.usage_file, secrets.token_hex(8), clock=clock)
        self.metrics = TenantMetrics(lambda: self.ledger.problem)
        self._held: dict[bytes, _Held] = {}
        if self._has_file:
            self.ledger.start()

    def wants(self, key: ApiKey | None) -> bool:
        """Whether requests of a key are metered."""
        return self._is_told or (key is not None and key.is_limited)

    def start(
        self,
        submit: Callable[[], RequestHandle[R_co]],
        task: tasks.Task,
        caller: Caller,
        *,
        rid: bytes,
        model: str,
        is_first: bool,
        is_named: bool = False,
        is_further: bool = False,
    ) -> MeteredHandle[R_co]:
        """Reserve, and have the request go out by `submit` then; `is_further`: its prompt is another answer's too."""
        wanted = reservation_of(task, caller, rid=rid, model=model, is_first=is_first, is_named=is_named)
        if is_further:
            wanted = wanted._replace(prompt_tokens=0, most=wanted.completion_tokens)
        self._held.setdefault(rid, _Held()).count += 1
        standing = caller.standing or Standing()
        standing.model = model
        return MeteredHandle(self, submit, wanted, standing, is_further=is_further)

    async def admit(self, wanted: Reservation, standing: Standing) -> None:
        """Wait for a reservation. Raises LimitError, or RefusedError where nothing can be recorded and that matters."""
        if not self._has_file and not wanted.subjects:
            return  # the audit log wants to know what it takes, and nobody else
        held = self._held[wanted.rid]
        try:
            async with asyncio.timeout(_ADMISSION_S):
                verdict = await self.ledger.reserve(wanted)
            held.is_reserved = True
        except (UnrecordedError, TimeoutError) as error:
            if isinstance(error, TimeoutError):  # it may be reserved yet, and has to be settled then
                held.is_reserved = True
                held.most = held.most or Settlement(wanted, "", 0, 0, has_failed=True)
            self.metrics.unrecorded()
            if self._serves_unrecorded:
                return
            text = "what is asked cannot be recorded now, so nothing is answered; the log of this bridge says why"
            raise RefusedError(503, "unrecorded", text) from None
        standing.judge(verdict)
        if verdict.refused_by is not None:
            self.metrics.refused(wanted.tenant, verdict.refused_by)
            raise _refusal(verdict)

    def settle(self, ended: Settlement, standing: Standing) -> None:
        """Count what a request took; of several readers of one, the last to go counts what most was had."""
        standing.add(ended)
        held = self._held[ended.reservation.rid]
        if held.most is None or _share(ended) > _share(held.most):
            held.most = ended
        self.let_go(ended.reservation.rid)

    def let_go(self, rid: bytes) -> None:
        """Note that somebody waits no more for a request."""
        held = self._held[rid]
        held.count -= 1
        if held.count:
            return
        del self._held[rid]
        if held.most is not None:
            self.metrics.settled(held.most)
            if held.is_reserved:
                self.ledger.settle(held.most)

    def close(self) -> None:
        """Write the last counts."""
        self.ledger.close()


class MeteredHandle(Generic[R_co]):
    """A request that goes out when it has its reservation, and is settled once, however it ends."""

    def __init__(
        self,
        meter: UsageMeter,
        submit: Callable[[], RequestHandle[R_co]],
        wanted: Reservation,
        standing: Standing,
        *,
        is_further: bool,
    ) -> None:
        self._meter = meter
        self._submit = submit
        self._wanted = wanted
        self._standing = standing
        self._is_further = is_further
        self._admission = asyncio.ensure_future(meter.admit(wanted, standing))
        self._handle: RequestHandle[R_co] | None = None
        self._prompt_tokens = 0
        self._made = 0
        self._is_settled = False
        self._is_given_up = False

    def cancel(self) -> None:
        """Give it up; what it has made by now is counted."""
        if self._handle is not None:
            self._handle.cancel()
            self._settle_so_far(has_failed=False)
        elif not self._is_given_up:
            self._is_given_up = True
            self._admission.add_done_callback(self._give_back)

    def done(self) -> bool:
        """Return whether its end has been read."""
        return self._is_settled or (self._handle is not None and self._handle.done())

    async def result(self) -> R_co:
        """Wait for the end. Raises RequestError, ConnectError or what `UsageMeter.admit` raises."""
        handle = await self._begin()
        try:
            result: Any = await handle.result()
        except (RequestError, ConnectError):
            self._settle_so_far(has_failed=True)
            raise
        usage: tasks.Usage = result.usage
        self._settle(result.model, usage.prompt_tokens, usage.completion_tokens, has_failed=False, is_whole=True)
        return result  # type: ignore[no-any-return]  # its handle's own

    async def next_chunks(self) -> list[Chunk]:
        """Wait for the next parts of a stream; none at the end. Raises as `result`."""
        handle = await self._begin()
        try:
            chunks = await handle.next_chunks()
        except (RequestError, ConnectError):
            self._settle_so_far(has_failed=True)
            raise
        for chunk in chunks:
            self._made += len(chunk.token_ids)
            self._prompt_tokens = chunk.prompt_tokens or self._prompt_tokens
        return chunks

    async def _begin(self) -> RequestHandle[R_co]:
        if self._handle is None:
            try:
                await asyncio.shield(self._admission)
            except HttpError:
                self._end_unadmitted()
                raise
            if self._is_given_up:
                raise request_error(ErrorKind.CANCELLED, "given up before it went out")
            try:
                self._handle = self._submit()
            except BaseException:
                self._settle("", 0, 0, has_failed=True)
                raise
        return self._handle

    def _give_back(self, admission: asyncio.Future[None]) -> None:
        if admission.cancelled() or admission.exception() is not None:
            self._end_unadmitted()
        else:
            self._settle("", 0, 0, has_failed=True)

    def _end_unadmitted(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            self._meter.let_go(self._wanted.rid)

    def _settle_so_far(self, *, has_failed: bool) -> None:
        """Count what was read of it: all that anybody has had of it. A model that said nothing may be an invented one,
        and the usage file would grow with them.
        """
        prompt = (self._prompt_tokens or self._wanted.prompt_tokens) if self._made else 0
        self._settle(self._wanted.model if self._made else "", prompt, self._made, has_failed=has_failed)

    def _settle(
        self, model: str, prompt_tokens: int, completion_tokens: int, *, has_failed: bool, is_whole: bool = False
    ) -> None:
        if not self._is_settled:
            self._is_settled = True
            prompt = 0 if self._is_further else _sane(prompt_tokens)
            ended = Settlement(self._wanted, model, prompt, _sane(completion_tokens), has_failed, is_whole)
            self._meter.settle(ended, self._standing)


class _Held:
    """How many wait for one request here, the most that one of them had of it, and whether the usage file knows it."""

    __slots__ = ("count", "is_reserved", "most")

    def __init__(self) -> None:
        self.count = 0
        self.is_reserved = False
        self.most: Settlement | None = None


def _sane(tokens: int) -> int:
    """Return a count as a node may tell it: not less than none."""
    return min(max(0, tokens), _MOST_TOKENS)


def _share(ended: Settlement) -> tuple[bool, int]:
    return ended.is_whole, ended.completion_tokens


def reservation_of(
    task: tasks.Task, caller: Caller, *, rid: bytes, model: str, is_first: bool, is_named: bool
) -> Reservation:
    """Say what a request may take. A token is a byte at least, so there are no more of them in a prompt than bytes."""
    size = len(tasks.encode(task)) + _TEMPLATE_BYTES
    answer = (task.max_tokens or ANSWER_TOKENS) if isinstance(task, tasks.Generate) else 0
    key = caller.key
    name = key.name if key is not None else ""
    limits = ((name, key.limits), (None, key.tenant_limits)) if key is not None else ()
    subjects = tuple(Subject(caller.tenant, who, limit) for who, limit in limits if limit is not NO_LIMITS)
    prompt = -(-size // _BYTES_PER_TOKEN)
    most = size + answer
    return Reservation(rid, caller.tenant, name, model, subjects, int(is_first), prompt, answer, most, is_named)


def _refusal(verdict: Verdict) -> HttpError:
    whose = "all keys of this tenant together" if verdict.is_of_tenant else "this key"
    limit, wait_s = verdict.limit, verdict.retry_after_s
    match verdict.refused_by:
        case "budget":
            what = f"the budget of {limit} tokens a month of {whose} is used up"
            if wait_s <= 1:
                what = f"requests under way may use up the budget of {limit} tokens a month of {whose}"
        case "concurrency":
            what = f"{limit} requests at once are the limit of {whose}, and so many are under way"
        case "rpm":
            what = f"{limit} requests a minute are the limit of {whose}"
        case _:
            what = f"{limit} tokens a minute are the limit of {whose}"
    return LimitError(what, wait_s, is_budget=verdict.refused_by == "budget" and wait_s > 1)
