"""The page of benchmarks tells where others are better, and whether a goal is met."""

from __future__ import annotations

import report
from bench_path import Figure, Row


def row(contestant: str, per_s: float, cpu_us: float, *, failed: int = 0, joined: float = 1.0) -> Row:
    """Make one round of 64 streams."""
    figure = Figure(
        per_s=per_s,
        p50_ms=1.0,
        p99_ms=2.0,
        cpu_us=cpu_us,
        parts_us={"server": cpu_us},
        client_us=1.0,
        client_share=0.1,
        events_per_token=joined,
        failed=failed,
    )
    return Row("path", "64 streams", contestant, [figure])


OURS = row("zmqrt HTTP", 100.0, 10.0)


def test_who_does_more_or_for_less_is_named() -> None:
    """But not who does less for more, nor who only answers, nor ourselves by another door."""
    others = [row("quick", 200.0, 20.0), row("cheap", 50.0, 5.0), row("neither", 50.0, 20.0)]
    bounds = [row("Starlette, no hop", 1000.0, 1.0), row("zmqrt native", 1000.0, 1.0)]

    (line,) = report.losses([OURS, *others, *bounds])

    assert line.startswith("- 64 streams: ")
    assert "quick does 2.00 times as much for 2.00 of the CPU time" in line
    assert "cheap does 0.50 times as much for 0.50 of the CPU time" in line
    assert "neither" not in line
    assert "Starlette" not in line
    assert "native" not in line


def test_no_loss_is_said_too() -> None:
    """Instead of nothing under a heading."""
    assert report.losses([OURS]) == ["- nowhere in this run."]


def test_failures_and_joined_tokens_are_told() -> None:
    """A rate without them would be half of the truth."""
    said = " ".join(report.remarks([row("zmqrt HTTP", 100.0, 10.0, failed=3, joined=0.25)]))

    assert "zmqrt HTTP 0.25 (64 streams)" in said
    assert "zmqrt HTTP 3 (64 streams)" in said


def test_a_goal_is_met_or_not() -> None:
    """Beside another's figure, or as it is, and what the bare hops reach; what was not measured has no line."""
    rows = [OURS, row("Starlette, no hop", 200.0, 5.0), row("bare hops", 120.0, 8.0)]

    def found(over: str, field: str, sense: str, wanted: str) -> str:
        return report.goal(rows, "path", "64 streams", "zmqrt HTTP", over, field, sense, wanted)

    assert found("Starlette, no hop", "per_s", "at least", "0.5").endswith("| 0.50 (0.50 to 0.50) | met | 0.60 |")
    assert found("Starlette, no hop", "per_s", "at least", "0.7").endswith("| 0.50 (0.50 to 0.50) |  | 0.60 |")
    assert found("", "cpu_us", "at most", "22").endswith("| 10.0 (10.0 to 10.0) | met | 8.00 |")
    assert found("mosec", "per_s", "at least", "1") == ""
