"""What happened to one request, as its broker saw it: the body of STATUS in the schema "story", asked for by `explain`.

Times are seconds after the request came in. A node says for itself how long it took on its own clock; nothing here
compares clocks of two machines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

SCHEMA: Final = "story"
SCHEMA_VERSION: Final = 1
State = Literal["queued", "dispatched", "streaming", "done", "cancelled", "failed"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One node's try.

    Attributes:
        dispatched_s: When it was given to the node.
        from_unit: Units that were delivered before: above 0 it is a resume.
        units: Units that this try made.
        first_s: When its first unit came; None while none has.
        last_s: When its last unit came; told of streams.
        ended_s: When it was over; None while it runs.
        why: Why it was lost; "" if it runs, or ended with the request.
        device: As the node said; "" while it has not.
        batch: Requests that ran on that device at that moment, this one included.
        wait_s: From the node's receipt to its engine, by the node's clock.
        prefill_s: From there to the first unit, by the node's clock.
    """

    node: str
    dispatched_s: float
    from_unit: int
    units: int
    first_s: float | None = None
    last_s: float | None = None
    ended_s: float | None = None
    why: str = ""
    device: str = ""
    batch: int = 0
    wait_s: float | None = None
    prefill_s: float | None = None


class RequestTrace(msgspec.Struct, frozen=True, kw_only=True):
    """One request from its coming in to now, or to its end.

    Attributes:
        ago_s: How long ago it came in.
        age_s: How long it took; for a live one, so far.
        queued_behind: Requests that waited before it when it came in; None if it was dispatched at once.
        begun_elsewhere: Units that its client had from another broker.
        code, reason, text: Of the error it ended with; 0 and "" otherwise.
    """

    broker_id: str
    rid: str
    request_id: str
    user: str
    model: str
    is_stream: bool
    state: State
    ago_s: float
    age_s: float
    queued_behind: int | None
    queued_why: str
    begun_elsewhere: int
    units: int
    attempts: list[Attempt]
    code: int = 0
    reason: str = ""
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a request went; the parts add up to its age.

    Attributes:
        queue_s: Waiting at the broker.
        dispatch_s: On the way to a node and waiting there.
        prefill_s: From there to the first unit.
        decode_s: From the first unit to the last, or to the result.
        lost_s: In tries that were lost: all of those without a unit, else from the last unit on.
    """

    queue_s: float = 0.0
    dispatch_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    lost_s: float = 0.0


def spent(age_s: float, attempts: Sequence[Attempt]) -> Spent:
    """Add up where the time went."""
    dispatch_s = prefill_s = decode_s = lost_s = 0.0
    for attempt in attempts:
        end_s = age_s if attempt.ended_s is None else attempt.ended_s
        if attempt.first_s is None:
            computed_s = (
                0.0 if attempt.why else min(end_s - attempt.dispatched_s, attempt.prefill_s or 0.0)
            )  # whole answers
            prefill_s += computed_s
            rest_s = end_s - attempt.dispatched_s - computed_s
            lost_s, dispatch_s = (lost_s + rest_s, dispatch_s) if attempt.why else (lost_s, dispatch_s + rest_s)
            continue
        before_s = attempt.first_s - attempt.dispatched_s
        computed_s = min(before_s, attempt.prefill_s if attempt.prefill_s is not None else before_s)
        prefill_s += computed_s
        dispatch_s += before_s - computed_s
        last_s = end_s if not attempt.why or attempt.last_s is None else min(attempt.last_s, end_s)
        decode_s += last_s - attempt.first_s
        lost_s += end_s - last_s
    queue_s = age_s - dispatch_s - prefill_s - decode_s - lost_s
    return Spent(
        queue_s=max(0.0, queue_s), dispatch_s=dispatch_s, prefill_s=prefill_s, decode_s=decode_s, lost_s=lost_s
    )


encode: Final[Callable[[Sequence[RequestTrace]], bytes]] = msgspec.msgpack.Encoder().encode
decode: Final[Callable[[bytes], list[RequestTrace]]] = msgspec.msgpack.Decoder(list[RequestTrace]).decode
"""The body of a STATUS: every request of the name asked for, the newest first. `decode` raises msgspec.DecodeError."""
