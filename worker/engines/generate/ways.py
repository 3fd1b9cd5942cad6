"""How a model is run, and what to leave out next if it does not say what it should. Pure.

From what is easiest to miss to what hurts: kernels of ours, recorded steps, the decoder of ours, and at last the one
operation of torch that is no public function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Way:
    """What an engine is made of. `path`: "fused" or "modules"; before a model was looked at also "auto"."""

    path: str
    has_kernels: bool = True
    has_graphs: bool = True
    has_flash: bool = True


def first(path: str, left_out: str, *, has_kernels: bool, has_graphs: bool) -> Way:
    """Return the way to try first: what was asked for, without what a process before this one has `left_out`."""
    names = set(left_out.split(","))
    return Way(
        "modules" if path == "auto" and "path" in names else path,
        has_kernels and "kernels" not in names,
        has_graphs and "graphs" not in names,
        "flash" not in names,
    )


def left_out(way: Way) -> str:
    """Return what `first` leaves out to come to this way."""
    kept = {
        "kernels": way.has_kernels,
        "graphs": way.has_graphs,
        "path": way.path != "modules",
        "flash": way.has_flash,
    }
    return ",".join(name for name, is_kept in kept.items() if not is_kept)


def after(used: Way, *, may_leave_path: bool) -> tuple[Way, str] | None:
    """Return the way to try after one that failed, and what it leaves out; None if there is none left."""
    if used.has_kernels:
        return replace(used, has_kernels=False), "Triton's kernels"
    if used.has_graphs:
        return replace(used, has_graphs=False), "CUDA graphs"
    if used.path == "fused" and may_leave_path:
        return replace(used, path="modules"), "the path 'fused'"
    if used.has_flash:
        return replace(used, has_flash=False), "flash attention"
    return None
