"""Draws the trace of a request: what it is, what happened when, where the time went. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...protocol.request_trace import Attempt, RequestTrace, spent
from ...protocol.sanitize import printable
from .text import BAR_CELLS, bar, clock, count_of

_STYLES: Final = {"done": "green", "failed": "red", "cancelled": "yellow"}
_PARTS: Final = {
    "queue": "waiting at the broker",
    "dispatch": "on the way to a node, and waiting there",
    "prefill": "reading the prompt, to the first token",
    "decode": "making tokens",
    "lost": "in attempts that were lost",
}


def trace_view(trace: RequestTrace) -> RenderableType:
    """Show one request: what it is, what happened when, where the time went."""
    return Group(_headline(trace), Text(), _timeline(trace), Text(), _parts(trace))


def _headline(trace: RequestTrace) -> Text:
    name = trace.request_id if trace.request_id != trace.rid else ""
    what = "stream" if trace.is_stream else "whole answer"
    asker = f" · of {trace.user}" if trace.user else ""
    took = f"{'so far ' if trace.state in ('queued', 'dispatched', 'streaming') else ''}{clock(trace.age_s)}"
    return Text.assemble(
        (f"{printable(name) or trace.rid} ", "bold"),
        (trace.state, _STYLES.get(trace.state, "cyan")),
        f" · {took} · {trace.model} · {what} · {count_of(trace.units, 'token')}{asker}",
        (f"\nrid {trace.rid} · broker {trace.broker_id} · came in {clock(trace.ago_s)} ago", "dim"),
    )


def _timeline(trace: RequestTrace) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="cyan", no_wrap=True)
    table.add_column(ratio=1)
    for at_s, text in _steps(trace):
        table.add_row(clock(at_s) if at_s else "0", Text(printable(text)))
    return table


def _steps(trace: RequestTrace) -> Iterator[tuple[float, str]]:
    yield 0.0, _arrival(trace)
    for number, attempt in enumerate(trace.attempts, 1):
        yield from _of_attempt(attempt, number)
    if trace.state == "done":
        reason = f" ({trace.finish_reason})" if trace.finish_reason else ""
        prompt = f", prompt of {count_of(trace.prompt_tokens, 'token')}" if trace.prompt_tokens else ""
        yield trace.age_s, f"done{reason}: {count_of(trace.units, 'token')}{prompt}"
    elif trace.code:
        yield trace.age_s, f"{trace.state}: {trace.code} {trace.reason}: {trace.text}"


def _arrival(trace: RequestTrace) -> str:
    begun = "came in"
    if trace.begun_elsewhere:
        begun += f" with {count_of(trace.begun_elsewhere, 'token')} made through another broker"
    if trace.queued_behind is None:
        return f"{begun}, and was given out at once"
    waited = f"{trace.queued_behind} waited before it" if trace.queued_behind else "nobody waited before it"
    return f"{begun}, and was queued: {trace.queued_why}; {waited}"


def _of_attempt(attempt: Attempt, number: int) -> Iterator[tuple[float, str]]:
    again = f", where it goes on after {count_of(attempt.from_unit, 'token')}" if attempt.from_unit else ""
    yield attempt.dispatched_s, f"given to {attempt.node} (attempt {number}){again}"
    if attempt.first_s is not None:
        others = f", in a batch of {attempt.batch}" if attempt.batch else ""
        waited = (
            f" after {clock(attempt.wait_s)} on the node"
            if attempt.wait_s is not None and attempt.wait_s >= 0.001
            else ""
        )
        prefill = f"; the engine needed {clock(attempt.prefill_s)}" if attempt.prefill_s is not None else ""
        where = f" on {attempt.device}" if attempt.device else ""
        yield attempt.first_s, f"first token{where}{others}{waited}{prefill}"
    elif attempt.device:
        yield attempt.ended_s or attempt.dispatched_s, f"ran on {attempt.device} in a batch of {attempt.batch}"
    if attempt.why and attempt.ended_s is not None:
        made = f"{count_of(attempt.units, 'token')} more" if attempt.from_unit else count_of(attempt.units, "token")
        yield attempt.ended_s, f"{attempt.why}, after {made}"


def _parts(trace: RequestTrace) -> Table:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left", "left"):
        table.add_column(justify=justify, no_wrap=True)
    times = spent(trace.age_s, trace.attempts)
    for name, meaning in _PARTS.items():
        seconds: float = getattr(times, f"{name}_s")
        share = seconds / trace.age_s if trace.age_s else 0.0
        if seconds or name != "lost":
            table.add_row(
                name, clock(seconds), f"{100 * share:.0f} %", bar(share, BAR_CELLS), Text(meaning, style="dim")
            )
    return table
