"""A job is one request on this node, under one lease: from its dispatch to its outcome. Pure.

PREPARING  its body is being checked, and its prompt encoded.
WAITING    ready to run, but no engine has a free slot.
RUNNING    an engine works on it under a ticket.
DONE       it has ended; kept for a moment if it has an outcome, in case the broker did not get it.

The log (ids, pieces) starts at unit 0 and is never cut: a lease that is rebound after a loss of the connection is
replayed from any unit, and an engine that died is replaced by one that goes on after the last.
"""

from __future__ import annotations

import enum
import heapq
import re
from typing import Final

from ..protocol import messages as m
from ..protocol import tasks
from ..protocol.errors import TABLE, ErrorKind, clip
from ..protocol.tasks import FinishReason, GenerateChunk, GenerateResult, TokenLogprobs, Usage
from ..protocol.thoughts import thought_units
from .engines import ipc
from .engines.base import AnswerEnd, TokenEvent
from .engines.sampling_state import GREEDY_BELOW
from .preprocess import PreparedGeneration, PreparedTask

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

_MOST_BYTES: Final = 16 << 10
"""Of one PARTIAL of several units, about: who reads too slowly is given up between two, and not a megabyte late."""
_ID_BYTES: Final = 4
_LOGPROB_BYTES: Final = 24
"""An id, twice, its log probability and its bytes."""


class JobState(enum.Enum):
    """See the module's first paragraph."""

    PREPARING = "preparing"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


TRANSITIONS: Final = {
    JobState.PREPARING: {JobState.WAITING, JobState.DONE},
    JobState.WAITING: {JobState.RUNNING, JobState.DONE},
    JobState.RUNNING: {JobState.WAITING, JobState.DONE},
    JobState.DONE: set[JobState](),
}


class Job:
    """The record of a job. The request table owns it, the device scheduler runs it."""

    def __init__(self, number: int, broker: int, dispatch: m.Dispatch, kind: ipc.Kind, now: float) -> None:
        self.number = number
        self.broker = broker
        self.lease = dispatch.lease
        self.attempt = dispatch.attempt
        self.user = dispatch.user
        self.rid = dispatch.rid
        self.service = dispatch.service
        self.flags = dispatch.flags
        self.kind: ipc.Kind = kind
        self.is_stream = bool(dispatch.flags & m.STREAM)
        """Whether the client wants units as they come."""
        self.has_partials = self.is_stream or (kind == "token" and bool(dispatch.flags & m.RESUMABLE))
        """Whether PARTIALs are sent: for streams, and for what the broker journals so that it can resume. Only tokens
        can be gone on with: a whole answer of an engine that deals in text begins anew instead."""
        self.ttl_s = dispatch.ttl_ms / 1000
        self.ext = dispatch.ext
        self.received_at = now
        self.submitted_at = now
        self.first_at: float | None = None
        self.batch = 0
        """Requests on its device when its first unit came."""
        self.is_accounted = False
        """Whether its broker knows device, batch and times (`account`)."""
        self.deadline = now + self.ttl_s
        """Of a request that has so much time in all; that of a patient one runs from `moved_at` on."""
        self.moved_at = now
        """When it made progress: units, a part of its prompt, a place in a line."""
        self.reported_at = now
        """The progress that its broker knows of."""
        self.sent_n = dispatch.resume_n
        """Units that its broker has: from an earlier node, and sent by us."""
        self.state = JobState.PREPARING
        self.prepared: PreparedGeneration | None = None
        self.plain: PreparedTask | None = None
        self.device = ""
        self.ticket = 0
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.text_bytes = 0
        """Of the pieces that a StreamEngine has made here."""
        self.logprobs: list[TokenLogprobs] | None = None
        self.tail = ""
        self.crashes = 0
        """Engines that died with this job before they had made a unit of it, since its last new unit."""
        self.run_from = dispatch.resume_n
        """Units that were there when its engine got it."""
        self.has_other_noise = False
        """It went on where noise has no positions: a sampled answer is whole, and not the one it would have been."""
        self.outcome: m.WorkerFinal | m.WorkerError | None = None
        """How it ended, but for what the session adds when it is sent (epoch, credit)."""

    @property
    def key(self) -> tuple[int, str, bytes]:
        """Whose request it is, through which broker: ids are chosen by clients, so alone they name nothing."""
        return self.broker, self.user, self.rid

    @property
    def request_id(self) -> str:
        """The name that its client gave it, else the rid: what logs show."""
        name = self.ext.get("request_id")
        return name if isinstance(name, str) and name else self.rid.hex()

    @property
    def trace_id(self) -> str:
        """The trace it belongs to (W3C trace context), for logs; "" without one."""
        parent = self.ext.get("traceparent")
        found = _TRACEPARENT.match(parent) if isinstance(parent, str) else None
        return found[1] if found is not None else ""

    @property
    def is_patient(self) -> bool:
        """Whether its time is time without progress, as that of every stream is; else it is the whole time."""
        return self.is_stream or self.ext.get("progress") is True

    @property
    def waits_in_line(self) -> bool:
        """Whether it has made nothing yet where it is: then it moves with the line that it stands in."""
        return self.total_n == self.run_from

    @property
    def total_n(self) -> int:
        """Units made so far (tokens; chunks of text where an engine deals in text)."""
        return len(self.pieces)

    def move(self, to: JobState) -> None:
        """Change state. A move that is not in the table is a fault of the core."""
        assert to in TRANSITIONS[self.state], f"{self.state} -> {to}"
        self.state = to

    def set_prepared(self, prepared: PreparedGeneration) -> None:
        """Take over the encoded prompt and the log of what was delivered before."""
        self.prepared = prepared
        self.ids, self.pieces, self.logprobs = prepared.ids, prepared.pieces, prepared.logprobs

    def set_plain(self, plain: PreparedTask) -> None:
        """Take over a whole task, and the log of what was delivered before."""
        self.plain, self.pieces = plain, plain.pieces

    def absorb(self, event: TokenEvent) -> FinishReason | None:
        """Add the new ids of one step to the log; return the reason if the answer is over.

        Ids after a stop string are dropped: the engine did not know of it. The id of a stop has no text.
        """
        prepared, ids = self.prepared, self.ids
        assert prepared is not None
        text = prepared.text
        for index, token_id in enumerate(event.token_ids):
            is_stop_id = prepared.ends_with(token_id, len(ids))
            ids.append(token_id)
            self.pieces.append("" if is_stop_id else text.step(token_id))
            if self.logprobs is not None:
                self.logprobs.append(_logprobs(token_id, event, index, prepared))
            if is_stop_id or text.is_stopped:
                return "stop"
        return event.finish_reason

    def begin(self, batch: int, now: float) -> None:
        """Note the first sign of it from an engine, and with how many others it ran."""
        self.first_at = now
        self.batch = batch

    def account(self) -> m.Ext:
        """Tell, once for each lease, where it runs and how long that took, on this node's clock; and of what prompt."""
        self.is_accounted = True
        begun_at = self.submitted_at if self.first_at is None else self.first_at
        prompt: m.Ext = {} if self.prepared is None else {"prompt_tokens": len(self.prepared.prompt_ids)}
        return prompt | {
            "device": self.device,
            "batch": self.batch,
            "wait_us": max(0, round(1e6 * (self.submitted_at - self.received_at))),
            "prefill_us": max(0, round(1e6 * (begun_at - self.submitted_at))),
        }

    def finish(self, reason: FinishReason, model: str, revision: str, ending: AnswerEnd | None = None) -> None:
        """End it with the result of a generation, built from the log, and from what a StreamEngine said at its end."""
        prepared = self.prepared
        if prepared is not None:
            self.tail = prepared.text.finish()
        usage = self._usage(ending or AnswerEnd())
        result = GenerateResult(
            finish_reason=reason,
            usage=usage,
            seed=self._seed(),
            model=model,
            revision=revision,
            tail=self.tail if self.is_stream else "",
            text=None if self.is_stream else "".join(self.pieces) + self.tail,
            ids=None if self.is_stream else self.ids,
            logprobs=None if self.is_stream else self.logprobs,
        )
        meta: m.Ext = {
            "finish_reason": reason,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if self.has_other_noise and prepared is not None and prepared.sampling.temperature >= GREEDY_BELOW:
            meta["resumed"] = "lossless"
        if prepared is not None and prepared.text.stop_index is not None:
            meta["stop_index"] = prepared.text.stop_index
        thoughts = ending.reasoning_tokens if ending is not None else thought_units(self.pieces)
        if thoughts:
            meta["reasoning_tokens"] = thoughts
        self.end_well(tasks.encode(result), meta)

    def _usage(self, ending: AnswerEnd) -> Usage:
        if self.prepared is not None:
            return Usage(prompt_tokens=len(self.prepared.prompt_ids), completion_tokens=self.total_n)
        return Usage(prompt_tokens=ending.prompt_tokens, completion_tokens=ending.completion_tokens or self.total_n)

    def _seed(self) -> int:
        if self.prepared is not None:
            return self.prepared.sampling.seed
        seed = self.plain.values.get("seed") if self.plain is not None else None
        return seed if isinstance(seed, int) else 0

    def end_well(self, body: bytes, meta: m.Ext) -> None:
        """End it with a whole result."""
        self.move(JobState.DONE)
        self.outcome = m.WorkerFinal(0, self.lease, self.total_n, 0, meta, body)

    def fail(self, kind: ErrorKind, text: str) -> None:
        """Give it an error as its outcome; it has been stopped already."""
        row = TABLE[kind]
        ext: m.Ext = {"crashes": self.crashes} if kind is ErrorKind.ENGINE_RESTARTED else {}
        self.outcome = m.WorkerError(0, self.lease, row.code, kind.value, row.redispatch, 0, clip(text), ext)

    def end_of_partial(self) -> int:
        """Say up to which unit the next PARTIAL goes: to the end, if that is not too much at once."""
        end, total = self.sent_n + 1, len(self.pieces)
        if end == total:  # most often it is the one new unit
            return end
        size = self._size(self.sent_n)
        while end < total and (size := size + self._size(end)) <= _MOST_BYTES:
            end += 1
        return end

    def _size(self, unit: int) -> int:
        """Return about how many bytes a unit takes: its text, and each of its log probabilities."""
        likeliest = 0 if self.logprobs is None else 1 + len(self.logprobs[unit].top)
        return len(self.pieces[unit]) + _ID_BYTES + likeliest * _LOGPROB_BYTES

    def body(self, first: int, end: int) -> bytes:
        """Return the body of a PARTIAL with these units."""
        logprobs = None if self.logprobs is None else self.logprobs[first:end]
        return tasks.encode(GenerateChunk(ids=self.ids[first:end], text=self.pieces[first:end], logprobs=logprobs))


def _logprobs(token_id: int, event: TokenEvent, index: int, prepared: PreparedGeneration) -> TokenLogprobs:
    """Pick the sampled token and the likeliest ones from the one map in which the engine reports them."""
    known = event.logprobs[index] if event.logprobs else {}
    top = dict(heapq.nlargest(prepared.sampling.logprobs or 0, known.items(), key=lambda pair: pair[1]))
    spelled = {token: prepared.spell(token) for token in (token_id, *top)}
    return TokenLogprobs(logprob=known.get(token_id, float("-inf")), top=top, spelled=spelled)
