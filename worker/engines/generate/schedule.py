"""What each step of the engine computes: which sequences get a token, and which piece of which prompt comes along.

Pure: it knows ids, lengths and places in the pool, no tensor and no clock. `engine.py` is the loop around it.
"""

# A request is in one of three states:
#
#     WAITING   queued: there is no slot, or no room in the pool for it
#     RUNNING   it has a slot and an extent of the pool; first its prompt is computed in pieces, then a token a step
#     ENDED     its last event is made, and its extent may be another's
#
# Rule 1: an extent is reserved whole. Admission takes room for the prompt and every token that the request may ask
# for, so a sequence that runs never lacks memory: nothing is preempted, swapped out or computed twice. The price is
# that a request may wait although much of the pool is unused (docs/adr/0005).
#
# Rule 2: admission keeps the order of arrival. Whoever is first waits for room, and the others wait behind it; a small
# request that overtook would let a large one starve.
#
# Rule 3: whoever is past its prompt takes part in every step, so the time between two tokens of an answer is bounded by
# the piece that comes along (`_room_for_prompts`). On a CPU all share one pass, and the piece is as long as measured
# times allow (prompt_pace.py); without a pace prompts share what those who run leave of `chunk_tokens`, but get one
# token at least: a token of a prompt costs what a token of an answer does. On a device they run in a pass of their own,
# whose length is a bound of time: who runs takes nothing from it, or 512 of them would leave one token a step. And
# where nobody runs nobody waits: prompts take `idle_chunk_tokens`, as many as fill the device.
#
# Rule 4: the oldest prompt and the shortest one have the first word by turns. The oldest alone would let a chat wait
# for a book, the shortest alone would let the book wait for ever.
#
# Theory of operation: planned and known.
#
# A GPU is given step N + 1 before the result of step N is read, so there are two truths about a sequence. `ids` is what
# is known: what came with the request, and the tokens that were read. `total` and `computed` are what is planned: they
# move when a step is planned, as if everything under way had gone well. A token between len(ids) and total is drawn by
# a step that nobody has read yet; a step that computes it has no id for it (`SequenceStep.ids` is None), and the runner
# takes it from where the step before left it, on the device.
#
# Planning stops by itself at `max_new_tokens`, but only reading shows a stop id. A sequence that has ended meanwhile
# takes part in the steps under way in vain, and `finish` drops what they drew. Its extent may be handed out at once all
# the same: steps are computed in the order in which they were planned, so the next owner writes later.
#
# Prefixes. An extent whose sequence has ended is kept with the ids whose keys and values lie in it, until its room is
# needed. A new prompt looks for the longest equal beginning, among those and among who runs. It takes a kept extent as
# it is if that is large enough, else it copies. The last token of a prompt is always computed, since its logits draw
# the first new one. At most `computed` tokens of a running sequence can be copied: the copy is part of the step
# that is planned now, and runs behind the steps that compute them.
#
# Grammars. What may follow a token is known once that token is read, so a sequence that keeps to a grammar takes part
# only in steps that are planned behind what was read: on a GPU in every second one. Its neighbours take part in all.
#
# Where every bit counts (`is_deterministic`), pieces of prompts begin and end at multiples of `chunk_tokens` and come
# one a step, only whole pieces are reused, and what a resumed request brings along is fed token by token, as it was
# made: a matrix product rounds by how many rows it has, so each token must always be computed in the same shape.

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter

import msgspec

from ..base import FinishReason, TokenRequest
from ..grammar import Matcher
from ..sampling_state import SamplingState
from .kv_cache import HEAD, Extent, KvCache, common_prefix
from .prompt_pace import PromptPace


@dataclass(eq=False, slots=True)
class Sequence:
    """A request on its way: waiting, or with a slot and an extent.

    Attributes:
        ids: Prompt, what it resumes from, and what was made here: all that is known.
        total: Its length once everything planned is done, a sampled token counting as soon as its step is planned.
        computed: Tokens whose keys and values are in the pool, or will be by then.
        given: How many tokens came with the request.
        most: Its length once it has all new tokens that it may have.
    """

    request: TokenRequest
    sampling_state: SamplingState
    stop_ids: frozenset[int]
    max_new_tokens: int
    ids: list[int]
    extent: Extent
    total: int
    computed: int
    has_ended: bool = False
    given: int = field(init=False)
    most: int = field(init=False)

    def __post_init__(self) -> None:
        """Count what came with the request, and may come: it is asked for with each token."""
        self.given = len(self.request.prompt_ids) + len(self.request.resume_ids)
        self.most = len(self.request.prompt_ids) + self.max_new_tokens

    @classmethod
    def of(
        cls, request: TokenRequest, stop_ids: frozenset[int], max_new_tokens: int, matcher: Matcher | None = None
    ) -> Sequence:
        """Make the sequence of a request that has no extent yet."""
        ids = [*request.prompt_ids, *request.resume_ids]
        state = SamplingState.of(request, stop_ids, matcher)
        return cls(request, state, stop_ids, max_new_tokens, ids, Extent(0, 0), len(ids), 0)

    @property
    def in_prompt(self) -> bool:
        """Whether no token has been drawn here, not even in plan."""
        return self.total == self.given


class SequenceStep(msgspec.Struct, frozen=True):
    """What one sequence does in a step: tokens `begin` .. `end` - 1 are computed, and the next is drawn if `draws`.

    `ids` are those tokens; None if the only one is what the step before draws and nobody has read yet. `is_prompt`: a
    piece of what came with the request, of any length; else one token of a sequence whose prompt is done.
    """

    sequence: Sequence
    begin: int
    end: int
    draws: bool
    ids: list[int] | None
    is_prompt: bool


@dataclass(frozen=True, slots=True)
class KvCopy:
    """Keys and values to copy inside the pool before a step: `count` tokens from `source` to `target`."""

    source: int
    target: int
    count: int


_NO_COPY = KvCopy(0, 0, 0)
_draws = attrgetter("draws")


@dataclass(slots=True)
class EngineStep:
    """One step: copies first, then all parts at once; those that draw (`drawing`) stand in front."""

    copies: list[KvCopy]
    parts: list[SequenceStep]
    drawing: list[SequenceStep] = field(init=False)

    def __post_init__(self) -> None:
        """Pick out who draws: all who have to do with a step ask for them."""
        self.drawing = [part for part in self.parts if part.draws]

    def portions(self) -> list[EngineStep]:
        """Return the step in two: those who run, and the pieces of prompts; one where there is nothing else."""
        running = [part for part in self.parts if not part.is_prompt]
        pieces = [part for part in self.parts if part.is_prompt]
        return [EngineStep(self.copies, running), EngineStep([], pieces)] if running and pieces else [self]

    def without(self, lost: list[SequenceStep]) -> EngineStep:
        """Return the step as it is when some parts came to nothing."""
        return EngineStep(self.copies, [part for part in self.parts if part not in lost])


@dataclass(kw_only=True)
class SchedulerLimits:
    """How much at once. `depth`: steps that may be under way; `may_reuse`: whether prefixes are looked for.

    `idle_chunk_tokens`: of a device, which computes prompts apart, the piece of a step in which nobody else runs; 0: of
    a CPU, where all share `chunk_tokens`.

    `is_deterministic`: each token is computed in a pass of the same shape whoever else is there, so that its numbers
    are the same to the last bit.
    """

    slots: int
    context: int
    chunk_tokens: int
    idle_chunk_tokens: int = 0
    depth: int = 1
    may_reuse: bool = True
    is_deterministic: bool = False


@dataclass
class SchedulerCounts:
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

    cache: KvCache
    limits: SchedulerLimits
    pace: PromptPace | None = None
    waiting: deque[Sequence] = field(default_factory=deque[Sequence])
    running: dict[int, Sequence] = field(default_factory=dict[int, Sequence])
    counts: SchedulerCounts = field(default_factory=SchedulerCounts)
    _turn: int = 0

    # --- in and out ------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether no further request can be taken in: one that waits here waits for room in the pool alone."""
        return len(self.waiting) + len(self.running) >= self.limits.slots

    def submit(self, sequence: Sequence) -> None:
        """Queue a request. It must fit the pool when it is alone there, or it would wait for ever."""
        self.waiting.append(sequence)

    def cancel(self, ticket: int) -> bool:
        """Let a request go, wherever it is; False if it is not here."""
        sequence = self.running.get(ticket)
        if sequence is not None:
            self._end(sequence)
            return True
        for sequence in self.waiting:
            if sequence.request.ticket == ticket:
                self.waiting.remove(sequence)
                return True
        return False

    # --- a step ----------------------------------------------------------------------------------------------------

    def plan(self) -> EngineStep | None:
        """Plan a step on the assumption that everything under way goes on; None if nobody can do anything now."""
        copies = self._admit()
        parts: list[SequenceStep] = []
        prompts: list[Sequence] = []
        for sequence in self.running.values():
            if self._is_in_pieces(sequence):
                prompts.append(sequence)
            elif (part := self._next_token(sequence)) is not None:
                parts.append(part)
        if prompts and (room := self._room_for_prompts(len(parts))):
            parts += self._pieces(room, prompts)
        if not parts:
            return None
        for part in parts:
            part.sequence.computed = part.end
            part.sequence.total += part.draws
        parts.sort(key=_draws, reverse=True)
        step = EngineStep(copies, parts)
        self.counts.steps += 1
        self.counts.largest_batch = max(self.counts.largest_batch, len(step.drawing))
        return step

    def _room_for_prompts(self, running: int) -> int:
        """Return how many tokens of prompts a step takes beside so many running sequences: see rule 3."""
        if self.pace is not None:
            return self.pace.room(running)
        if self.limits.idle_chunk_tokens:
            return self.limits.chunk_tokens if running else self.limits.idle_chunk_tokens
        return max(1, self.limits.chunk_tokens - running)

    def _next_token(self, sequence: Sequence) -> SequenceStep | None:
        """Let a sequence whose prompt is done go on by one token."""
        total = sequence.total
        if total >= sequence.most:
            return None
        end = total if total > sequence.given else sequence.computed + 1
        ids = sequence.ids[end - 1 : end] or None
        if ids is None and sequence.sampling_state.matcher is not None:
            return None  # what may follow a token is known once it is read
        return SequenceStep(sequence, end - 1, end, end == total, ids, is_prompt=False)

    def _is_in_pieces(self, sequence: Sequence) -> bool:
        """Whether a prompt is still computed piece by piece."""
        if self.limits.is_deterministic:
            return sequence.computed < len(sequence.request.prompt_ids)
        return sequence.in_prompt

    def _pieces(self, budget: int, prompts: list[Sequence]) -> list[SequenceStep]:
        """Share what the step has left among the prompts."""
        pieces: list[SequenceStep] = []
        for sequence in self._in_turn(prompts):
            begin = sequence.computed
            if self.limits.is_deterministic:
                end = min(begin + self.limits.chunk_tokens, len(sequence.request.prompt_ids))
            else:
                end = min(begin + budget, sequence.total)
            pieces.append(
                SequenceStep(
                    sequence, begin, end, draws=end == sequence.total, ids=sequence.ids[begin:end], is_prompt=True
                )
            )
            self.counts.prompt_tokens += end - begin
            budget -= end - begin
            if budget <= 0 or self.limits.is_deterministic:
                break
        return pieces

    def _in_turn(self, prompts: list[Sequence]) -> list[Sequence]:
        """Give the oldest prompt and the shortest one the first word by turns: neither waits for the other."""
        if len(prompts) > 1 and self._turn % 2:
            prompts.sort(key=lambda sequence: sequence.total - sequence.computed)
        self._turn += 1
        return prompts

    def learn(self, step: EngineStep, seconds: float) -> None:
        """Take in how long a step took from its launch, where it has the processor to itself."""
        if self.pace is not None and not step.copies:  # a long prefix takes its time, and says nothing of the next step
            prompt_tokens = sum(part.end - part.begin for part in step.parts if part.is_prompt)
            self.pace.learn(sum(not part.is_prompt for part in step.parts), prompt_tokens, seconds)

    def finish(self, step: EngineStep, tokens: list[int]) -> list[tuple[Sequence, int, FinishReason | None]]:
        """Take in the tokens that a step drew, one for each of `step.drawing`; those of who has ended are dropped."""
        made: list[tuple[Sequence, int, FinishReason | None]] = []
        for part, token_id in zip(step.drawing, tokens, strict=True):
            sequence = part.sequence
            if sequence.has_ended:
                continue
            sequence.ids.append(token_id)
            sequence.sampling_state.take(token_id)
            reason = finish_reason(sequence)
            if reason is not None:
                self._end(sequence)
            made.append((sequence, token_id, reason))
        self.counts.tokens += len(made)
        return made

    # --- admission ---------------------------------------------------------------------------------------------------

    def _admit(self) -> list[KvCopy]:
        """Let waiting requests in, in their order: whoever is first waits for room, and the others behind it."""
        copies: list[KvCopy] = []
        while self.waiting and len(self.running) < self.limits.slots:
            sequence = self.waiting[0]
            copy = self._place(sequence)
            if copy is None:
                break
            self.waiting.popleft()
            self.running[sequence.request.ticket] = sequence
            if copy.count:
                copies.append(copy)
        return copies

    def _place(self, sequence: Sequence) -> KvCopy | None:
        """Find an extent for a sequence, with as much of its prompt in it as there is; None if there is no room."""
        size = min(len(sequence.request.prompt_ids) + sequence.max_new_tokens, self.limits.context)
        size = max(size, len(sequence.ids))
        source, length = self._longest_prefix(sequence)
        is_kept = source is not None and self.cache.is_kept(source)
        if source is not None and is_kept and source.size >= size:
            self.cache.take(source)
            sequence.extent, sequence.computed = source, length
            self.counts.reused_in_place += 1
            self.counts.reused_tokens += length
            return _NO_COPY
        extent = self.cache.allocate(size, spare=source if is_kept else None)
        if extent is None and is_kept:
            source = None  # there is room only where the prefix lies
            extent = self.cache.allocate(size)
        if extent is None:
            return None
        sequence.extent = extent
        if source is None:
            return _NO_COPY
        if is_kept:
            self.cache.touch(source)
        sequence.computed = length
        self.counts.reused_by_copy += 1
        self.counts.reused_tokens += length
        return KvCopy(source.start, extent.start, length)

    def _longest_prefix(self, sequence: Sequence) -> tuple[Extent | None, int]:
        """Find the sequence in the pool that begins most like this one; the last token is always computed."""
        best: tuple[Extent | None, int] = (None, HEAD - 1)
        ids = sequence.ids
        if not self.limits.may_reuse or len(ids) <= HEAD:
            return best
        head, most = ids[:HEAD], self._reusable(sequence, len(ids) - 1)
        running = (
            (other.extent, other.ids[: self._reusable(other, other.computed)])
            for other in self.running.values()
            if other.computed > best[1] and other.ids[:HEAD] == head
        )
        for extent, known in itertools.chain(self.cache.alike(ids), running):
            length = self._reusable(sequence, min(common_prefix(ids, known), len(ids) - 1))
            if length > best[1]:
                best = (extent, length)
            if length == most:
                break
        return best

    def _reusable(self, sequence: Sequence, length: int) -> int:
        """Bound a prefix: where every bit counts, to whole pieces of the prompt."""
        if not self.limits.is_deterministic:
            return length
        return min(length, len(sequence.request.prompt_ids)) // self.limits.chunk_tokens * self.limits.chunk_tokens

    def fail(self, sequence: Sequence) -> None:
        """Let a running sequence go whose last planned part came to nothing; what lies in its extent is worthless."""
        sequence.computed = 0
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        sequence.has_ended = True
        del self.running[sequence.request.ticket]
        if self.limits.may_reuse:
            self.cache.keep(sequence.extent, sequence.ids[: self._reusable(sequence, sequence.computed)])
        else:
            self.cache.release(sequence.extent)


def finish_reason(sequence: Sequence) -> FinishReason | None:
    """Say why a sequence is over after its last token, or that it is not."""
    state = sequence.sampling_state
    made, matcher = state.generated_count, state.matcher
    if matcher is not None and (matcher.is_over or matcher.error):
        return "error" if matcher.error else "stop"
    if made and sequence.ids[-1] in sequence.stop_ids and made > state.min_new_tokens:
        return "stop"
    return "length" if made >= sequence.max_new_tokens else None
