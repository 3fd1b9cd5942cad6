"""What each step computes: which sequences get their next token, and which part of which prompt comes along. Pure.

    WAITING   queued; there is no row or no room in the pool for it
    RUNNING   it has a stretch of the pool: first its prompt is computed in pieces, then a token a step
    ENDED     its last event is made, and its stretch is another's

Every running sequence past its prompt takes part in every step; prompts share what is left of the token budget, so
however long they are, nobody's next token waits for more than one piece. Results may come a step or two after the next
step was planned (a GPU is given step N+1 before N is read): a sequence that has ended in between takes part in vain.
That harms nobody: steps are computed in the order in which they are planned, so whoever gets its stretch comes later.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..base import FinishReason, TokenRequest
from ..draw import Draw
from .kv_space import HEAD, KvSpace, Span, common_prefix


@dataclass(eq=False, slots=True)
class Row:
    """One running sequence.

    Attributes:
        ids: Prompt, what it resumes from, and what was made here: all that is known.
        total: Its length once everything planned is done, a sampled token counting as soon as its step is planned.
        computed: Tokens whose keys and values are in the pool, or will be by then.
    """

    request: TokenRequest
    draw: Draw
    stop_ids: frozenset[int]
    max_new_tokens: int
    ids: list[int]
    span: Span
    total: int
    computed: int
    has_ended: bool = False

    @classmethod
    def of(cls, request: TokenRequest, stop_ids: frozenset[int], max_new_tokens: int) -> Row:
        """Make the row of a request that has no stretch yet."""
        ids = [*request.prompt_ids, *request.resume_ids]
        draw = Draw.of(request, stop_ids)
        return cls(request, draw, stop_ids, max_new_tokens, ids, Span(0, 0), len(ids), 0)

    @property
    def given(self) -> int:
        """How many tokens came with the request."""
        return len(self.request.prompt_ids) + len(self.request.resume_ids)

    @property
    def in_prompt(self) -> bool:
        """Whether no token has been drawn here, not even in plan."""
        return self.total == self.given

    @property
    def planned_new(self) -> int:
        """New tokens once everything planned is done, those it resumes from included."""
        return self.total - len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence does in a step: tokens `begin` .. `end` - 1 are computed, and the next is drawn if `draws`.

    `ids` are those tokens; None if the only one is what the step before draws and nobody has read yet. `is_prompt`: a
    piece of what came with the request, of any length; else one token of a sequence whose prompt is done.
    """

    row: Row
    begin: int
    end: int
    draws: bool
    ids: Sequence[int] | None
    is_prompt: bool


@dataclass(frozen=True, slots=True)
class Copy:
    """Keys and values to copy inside the pool before a step: `count` tokens from `source` to `target`."""

    source: int
    target: int
    count: int


_NO_COPY = Copy(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: copies first, then all parts at once; those that draw stand in front."""

    copies: Sequence[Copy]
    parts: Sequence[Part]

    @property
    def drawing(self) -> list[Part]:
        """The parts that draw a token."""
        return [part for part in self.parts if part.draws]

    def without(self, lost: Sequence[Part]) -> Step:
        """Return the step as it is when some parts came to nothing."""
        return Step(self.copies, [part for part in self.parts if part not in lost])


@dataclass(kw_only=True)
class Limits:
    """How much at once. `depth`: steps that may be under way; `may_reuse`: whether prefixes are looked for.

    `is_deterministic`: each token is computed in the same company of places whoever else is there, so that its numbers
    are the same to the last bit. Pieces of prompts begin and end at multiples of `chunk_tokens` and come one a step,
    prefixes are reused in whole pieces, and what a request resumes from is fed token by token, as it was made.
    """

    rows: int
    context: int
    chunk_tokens: int
    depth: int = 1
    may_reuse: bool = True
    is_deterministic: bool = False


@dataclass
class Counts:
    """What a scheduler has done."""

    steps: int = 0
    tokens: int = 0
    largest_batch: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    reused_in_place: int = 0
    reused_by_copy: int = 0


@dataclass
class Scheduler:
    """Admits, plans, and takes results in; the order of calls is submit* (plan finish*)*."""

    space: KvSpace
    limits: Limits
    waiting: deque[Row] = field(default_factory=deque[Row])
    rows: dict[int, Row] = field(default_factory=dict[int, Row])
    counts: Counts = field(default_factory=Counts)
    _turn: int = 0

    # --- in and out ------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether no further request can be taken in: one that waits here waits for room in the pool alone."""
        return len(self.waiting) + len(self.rows) >= self.limits.rows

    def submit(self, request: TokenRequest, stop_ids: frozenset[int], max_new_tokens: int) -> None:
        """Queue a request that fits the pool when it is alone there."""
        self.waiting.append(Row.of(request, stop_ids, max_new_tokens))

    def cancel(self, ticket: int) -> bool:
        """Let a request go, wherever it is; False if it is not here."""
        row = self.rows.get(ticket)
        if row is not None:
            self._end(row)
            return True
        for row in self.waiting:
            if row.request.ticket == ticket:
                self.waiting.remove(row)
                return True
        return False

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to plan."""
        return not self.rows and not self.waiting

    # --- a step ----------------------------------------------------------------------------------------------------

    def plan(self) -> Step | None:
        """Plan a step on the assumption that everything under way goes on; None if nobody can do anything now."""
        copies = self._admit()
        single = [part for row in self.rows.values() if (part := self._next_token(row)) is not None]
        pieces = self._pieces(max(1, self.limits.chunk_tokens - len(single)))
        drawing = [part for part in (*single, *pieces) if part.draws]
        parts = [*drawing, *(part for part in (*single, *pieces) if not part.draws)]
        if not parts:
            return None
        for part in parts:
            part.row.computed = part.end
            part.row.total += part.draws
        self.counts.steps += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(drawing))
        return Step(copies, parts)

    def _next_token(self, row: Row) -> Part | None:
        """Let a sequence go on by one token, if its prompt is done."""
        if self._is_in_pieces(row) or row.planned_new >= row.max_new_tokens:
            return None
        at = row.computed if row.in_prompt else row.total - 1
        ids = row.ids[at : at + 1] if at < len(row.ids) else None
        return Part(row, at, at + 1, draws=at + 1 == row.total, ids=ids, is_prompt=False)

    def _is_in_pieces(self, row: Row) -> bool:
        """Whether a prompt is still computed piece by piece."""
        if self.limits.is_deterministic:
            return row.computed < len(row.request.prompt_ids)
        return row.in_prompt

    def _pieces(self, budget: int) -> list[Part]:
        """Share what the step has left among the prompts."""
        pieces: list[Part] = []
        for row in self._prompts_in_turn():
            begin = row.computed
            if self.limits.is_deterministic:
                end = min(begin + self.limits.chunk_tokens, len(row.request.prompt_ids))
            else:
                end = min(begin + budget, row.total)
            pieces.append(Part(row, begin, end, draws=end == row.total, ids=row.ids[begin:end], is_prompt=True))
            self.counts.prompt_tokens += end - begin
            budget -= end - begin
            if budget <= 0 or self.limits.is_deterministic:
                break
        return pieces

    def _prompts_in_turn(self) -> Iterable[Row]:
        """Give the oldest prompt and the shortest one the first word by turns: neither waits for the other."""
        rows = [row for row in self.rows.values() if self._is_in_pieces(row)]
        if len(rows) > 1 and self._turn % 2:
            rows.sort(key=lambda row: row.total - row.computed)
        self._turn += bool(rows)
        return rows

    def finish(self, step: Step, tokens: Sequence[int]) -> list[tuple[Row, int, FinishReason | None]]:
        """Take in the tokens that a step drew, one for each of `step.drawing`; those of who has ended are dropped."""
        made: list[tuple[Row, int, FinishReason | None]] = []
        for part, token_id in zip(step.drawing, tokens, strict=True):
            row = part.row
            if row.has_ended:
                continue
            row.ids.append(token_id)
            row.draw.take(token_id)
            self.counts.tokens += 1
            reason = finish_reason(row)
            if reason is not None:
                self._end(row)
            made.append((row, token_id, reason))
        return made

    # --- rows ------------------------------------------------------------------------------------------------------

    def _admit(self) -> list[Copy]:
        """Let waiting requests in, in their order: whoever is first waits for room, and the others behind it."""
        copies: list[Copy] = []
        while self.waiting and len(self.rows) < self.limits.rows:
            row = self.waiting[0]
            copy = self._place(row)
            if copy is None:
                break
            self.waiting.popleft()
            self.rows[row.request.ticket] = row
            if copy.count:
                copies.append(copy)
        return copies

    def _place(self, row: Row) -> Copy | None:
        """Find a stretch for a row, with as much of its prompt in it as there is; None if there is no room."""
        size = min(len(row.request.prompt_ids) + row.max_new_tokens, self.limits.context)
        size = max(size, len(row.ids))
        source, length = self._longest_prefix(row)
        is_kept = source is not None and self.space.is_kept(source)
        if source is not None and is_kept and source.size >= size:
            self.space.take(source)
            row.span, row.computed = source, length
            self.counts.reused_in_place += 1
            self.counts.reused_tokens += length
            return _NO_COPY
        span = self.space.allocate(size, spare=source if is_kept else None)
        if span is None and is_kept:
            source = None  # there is room only where the prefix lies
            span = self.space.allocate(size)
        if span is None:
            return None
        row.span = span
        if source is None:
            return _NO_COPY
        if is_kept:
            self.space.touch(source)
        row.computed = length
        self.counts.reused_by_copy += 1
        self.counts.reused_tokens += length
        return Copy(source.start, span.start, length)

    def _longest_prefix(self, row: Row) -> tuple[Span | None, int]:
        """Find the sequence in the pool that begins most like this one; the last token is always computed."""
        best: tuple[Span | None, int] = (None, HEAD - 1)
        ids = row.ids
        if not self.limits.may_reuse or len(ids) <= HEAD:
            return best
        head = ids[:HEAD]
        running = (
            (one.span, one.ids[: self._reusable(one, one.computed)])
            for one in self.rows.values()
            if one.computed > best[1] and one.ids[:HEAD] == head
        )
        for span, known in itertools.chain(self.space.alike(ids), running):
            length = self._reusable(row, min(common_prefix(ids, known), len(ids) - 1))
            if length > best[1]:
                best = (span, length)
        return best

    def _reusable(self, row: Row, length: int) -> int:
        """Bound a prefix: where every bit counts, to whole pieces of the prompt."""
        if not self.limits.is_deterministic:
            return length
        return min(length, len(row.request.prompt_ids)) // self.limits.chunk_tokens * self.limits.chunk_tokens

    def fail(self, row: Row) -> None:
        """Let a running sequence go whose last planned part came to nothing; what lies in its stretch is worthless."""
        row.computed = 0
        self._end(row)

    def _end(self, row: Row) -> None:
        row.has_ended = True
        del self.rows[row.request.ticket]
        if self.limits.may_reuse:
            self.space.keep(row.span, row.ids[: self._reusable(row, row.computed)])
        else:
            self.space.release(row.span)


def finish_reason(row: Row) -> FinishReason | None:
    """Say why a sequence is over after its last token, or that it is not."""
    made = row.draw.generated_count
    if made and row.ids[-1] in row.stop_ids and made > row.draw.min_new_tokens:
        return "stop"
    return "length" if made >= row.max_new_tokens else None
