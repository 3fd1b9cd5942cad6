"""The story of a request as something to read: pure, a story in, a rich renderable out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...protocol.request_trace import Attempt, RequestTrace, spent
from ...protocol.sanitize import printable
from ..top.text import bar
from .fleet_view import BAR_CELLS

_STYLES: Final = {"done": "green", "failed": "red", "cancelled": "yellow"}
_PARTS: Final = {
    "queue": "waiting at the broker",
    "dispatch": "on the way to a node, and waiting there",
    "prefill": "reading the prompt, to the first token",
    "decode": "making tokens",
    "lost": "in attempts that were lost",
}


def story_view(story: RequestTrace) -> RenderableType:
    """Show one request: what it is, what happened when, where the time went."""
    return Group(_headline(story), Text(), _timeline(story), Text(), _parts(story))


def clock(seconds: float) -> str:
    """Write a short time with three digits that matter."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms" if seconds >= 0.001 else f"{1000 * seconds:.2f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def _headline(story: RequestTrace) -> Text:
    name = story.request_id if story.request_id != story.rid else ""
    what = "stream" if story.is_stream else "whole answer"
    asker = f" · of {story.user}" if story.user else ""
    took = f"{'so far ' if story.state in ('queued', 'dispatched', 'streaming') else ''}{clock(story.age_s)}"
    return Text.assemble(
        (f"{printable(name) or story.rid} ", "bold"),
        (story.state, _STYLES.get(story.state, "cyan")),
        f" · {took} · {story.model} · {what} · {_tokens(story.units)}{asker}",
        (f"\nrid {story.rid} · broker {story.broker_id} · came in {clock(story.ago_s)} ago", "dim"),
    )


def _timeline(story: RequestTrace) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="cyan", no_wrap=True)
    table.add_column(ratio=1)
    for at_s, text in _steps(story):
        table.add_row(clock(at_s) if at_s else "0", Text(printable(text)))
    return table


def _steps(story: RequestTrace) -> Iterator[tuple[float, str]]:
    yield 0.0, _arrival(story)
    for number, one in enumerate(story.attempts, 1):
        yield from _of_attempt(one, number)
    if story.state == "done":
        reason = f" ({story.finish_reason})" if story.finish_reason else ""
        prompt = f", prompt of {_tokens(story.prompt_tokens)}" if story.prompt_tokens else ""
        yield story.age_s, f"done{reason}: {_tokens(story.units)}{prompt}"
    elif story.code:
        yield story.age_s, f"{story.state}: {story.code} {story.reason}: {story.text}"


def _arrival(story: RequestTrace) -> str:
    begun = "came in"
    if story.begun_elsewhere:
        begun += f" with {_tokens(story.begun_elsewhere)} made through another broker"
    if story.queued_behind is None:
        return f"{begun}, and was given out at once"
    waited = f"{story.queued_behind} waited before it" if story.queued_behind else "nobody waited before it"
    return f"{begun}, and was queued: {story.queued_why}; {waited}"


def _of_attempt(one: Attempt, number: int) -> Iterator[tuple[float, str]]:
    again = f", where it goes on after {_tokens(one.from_unit)}" if one.from_unit else ""
    yield one.dispatched_s, f"given to {one.node} (attempt {number}){again}"
    if one.first_s is not None:
        others = f", in a batch of {one.batch}" if one.batch else ""
        waited = f" after {clock(one.wait_s)} on the node" if one.wait_s is not None and one.wait_s >= 0.001 else ""
        prefill = f"; the engine needed {clock(one.prefill_s)}" if one.prefill_s is not None else ""
        where = f" on {one.device}" if one.device else ""
        yield one.first_s, f"first token{where}{others}{waited}{prefill}"
    elif one.device:
        yield one.ended_s or one.dispatched_s, f"ran on {one.device} in a batch of {one.batch}"
    if one.why and one.ended_s is not None:
        made = f"{_tokens(one.units)} more" if one.from_unit else _tokens(one.units)
        yield one.ended_s, f"{one.why}, after {made}"


def _parts(story: RequestTrace) -> Table:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left", "left"):
        table.add_column(justify=justify, no_wrap=True)
    told = spent(story.age_s, story.attempts)
    for name, meaning in _PARTS.items():
        seconds: float = getattr(told, f"{name}_s")
        share = seconds / story.age_s if story.age_s else 0.0
        if seconds or name != "lost":
            table.add_row(
                name, clock(seconds), f"{100 * share:.0f} %", bar(share, BAR_CELLS), Text(meaning, style="dim")
            )
    return table


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"
