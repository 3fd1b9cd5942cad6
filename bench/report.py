"""Writes the first half of docs/benchmarks.md, and its plot, from the newest reports in bench/results/.

`make docs` runs it. The plot needs matplotlib (`make bench` installs it) and stays as it is without.
"""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any, Final

import bench_path
import bench_roundtrip
import msgspec
from bench_path import Row
from bench_roundtrip import Case
from processes import HERE
from reports import Circumstances

PAGE: Final = HERE.parent / "docs" / "benchmarks.md"
PLOT: Final = HERE.parent / "docs" / "images" / "bench-path.svg"
BEGIN, END = "<!-- made by bench/report.py -->\n", "<!-- end of what bench/report.py made -->\n"
OURS: Final = {"path": "zmqrt HTTP", "path-10ms": "zmqrt HTTP", "gateway": "zmqrt", "gateway-10ms": "zmqrt"}
STEPS: Final = {"path": "", "path-10ms": ", steps of 10 ms", "gateway": "", "gateway-10ms": ", steps of 10 ms"}
BARE: Final = "bare hops"
NO_PEER: Final = ("Starlette, no hop", BARE, "no gateway")
"""What does nothing but answer: a bound, not a choice."""
GOALS: Final[tuple[tuple[str, str, str, str, str, str, str], ...]] = (
    ("path", "64 requests", "zmqrt HTTP", "mosec", "per_s", "at least", "1.2"),
    ("path", "64 requests", "zmqrt HTTP", "mosec", "cpu_us", "at most", "1.0"),
    ("path", "1 request", "zmqrt HTTP", "mosec", "p50_ms", "at most", "3.5"),
    ("path", "1 request", "zmqrt HTTP", "FastAPI + httpx", "p50_ms", "at most", "1.0"),
    ("path", "64 streams", "zmqrt HTTP", "Starlette, no hop", "per_s", "at least", "0.7"),
    ("path", "64 streams", "zmqrt HTTP", "", "cpu_us", "at most", "22"),
    ("path", "64 requests", "zmqrt native", "", "cpu_us", "at most", "70"),
    ("path", "64 streams", "zmqrt native", "", "per_s", "at least", "150000"),
    ("path", "64 streams", "zmqrt native", "", "cpu_us", "at most", "9"),
    ("path-10ms", "1 stream", "zmqrt HTTP", "", "cpu_us", "at most", "1600"),
    ("path-10ms", "1 stream", "zmqrt native", "", "cpu_us", "at most", "900"),
    ("path-10ms", "64 streams", "zmqrt HTTP", "", "cpu_us", "at most", "45"),
    ("path-10ms", "64 streams", "zmqrt native", "", "cpu_us", "at most", "20"),
    ("gateway", "64 requests", "zmqrt", "smg", "per_s", "at least", "1.0"),
    ("gateway", "64 requests", "zmqrt", "smg", "cpu_us", "at most", "1.0"),
    ("gateway-10ms", "64 streams", "zmqrt", "smg", "cpu_us", "at most", "1.2"),
)
"""Suite, load, whose figure, over whose (empty: the figure itself), which, and what we want it to be."""
FIGURES: Final = {"per_s": "a second", "cpu_us": "CPU us", "p50_ms": "p50"}


def newest(name: str) -> Path | None:
    """Return the newest report of that name."""
    return max((HERE / "results").glob(f"{name}-*.json"), default=None)


def page() -> str:
    """Return the whole page: what is made here, then what is written by hand."""
    _, _, by_hand = PAGE.read_text(encoding="utf-8").partition(END)
    parts = ["# Benchmarks", "", BEGIN]
    if at := newest("path"):
        parts += _path_part(msgspec.json.decode(at.read_bytes(), type=bench_path.Report))
    if at := newest("roundtrip"):
        parts += _roundtrip_part(msgspec.json.decode(at.read_bytes(), type=bench_roundtrip.Report))
    return "\n".join([*parts, END]) + by_hand


# --- the whole path ------------------------------------------------------------------------------------------------


def _path_part(report: bench_path.Report) -> list[str]:
    path, gateways = _of(report.rows, _PATHS), _of(report.rows, _GATEWAYS)
    return [
        "`make bench` measures; this half of the page is written from what it found, the other by hand. Trust ratios",
        "within one run, not absolute figures.",
        "",
        "## Beside others",
        "",
        "Requests of one token, streams of 128, from a model that needs no time or 10 ms a token; everything on one",
        "machine, all contestants in turn. In each cell: requests or tokens a second, p50 of whole answers, and CPU us",
        "for a request or a token over all processes of a server, children too, without the client.",
        "",
        *_table(path, _with_p50),
        "",
        "mosec, LitServe, Ray Serve and BentoML hand requests to a worker process, as their documentation shows it.",
        "Starlette on uvicorn answers by itself: a bound, not a choice. So are the bare hops: the processes and",
        "sockets of zmqrt with nothing in them (`bench/bare_path.py`). The gateway of FastAPI and httpx stands in",
        "front of a plain server.",
        "",
        "![CPU time for a request or token](images/bench-path.svg)",
        "",
        "**Where we lose**, of those that one could take instead:",
        "",
        *losses(path),
        "",
        *remarks(path),
        "",
        "## Beside gateways",
        "",
        "Chat completions through gateways to a plain engine that is quick; ours have a broker and a node's agent on",
        "the way, and keep a journal of each stream. CPU is that of the gateway, without the engine.",
        "",
        *_table(gateways, _with_p50),
        "",
        *losses(gateways),
        "",
        *remarks(gateways),
        "",
        "## What we want, and where we are",
        "",
        "The last column is that of the bare hops: where they miss it too, no Python on this path reaches it.",
        "",
        "| load | figure | wanted | found (lowest to highest round) | | bare hops |",
        "|---|---|---|---|---|---|",
        *(line for one in GOALS if (line := goal(report.rows, *one))),
        "",
        *_circumstances(report, f"medians of {len(report.rows[0].rounds)} rounds of {report.seconds:g} s"),
        "",
        f"Beside them: {', '.join(f'{name} {version}' for name, version in report.peers.items()) or 'nothing'}"
        + (f"; left out, since not found: {', '.join(report.left_out)}" if report.left_out else "")
        + ".",
        "",
    ]


_PATHS: Final = ("path", "path-10ms")
_GATEWAYS: Final = ("gateway", "gateway-10ms")


def _table(rows: list[Row], cell: Any) -> list[str]:  # noqa: ANN401 - a function of a row
    """Write a line for each load and a column for each contestant."""
    names = list(dict.fromkeys(row.contestant for row in rows))
    loads: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        loads.setdefault((row.load, row.suite), {})[row.contestant] = row
    return [
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {load}{STEPS[suite]} | {' | '.join(cell(by[name]) if name in by else '' for name in names)} |"
            for (load, suite), by in loads.items()
        ),
    ]


def _with_p50(row: Row) -> str:
    parts = [f"{row.median('per_s'):,.0f}/s"]
    if "stream" not in row.load:
        parts.append(f"{_short(row.median('p50_ms'))} ms")
    return "<br>".join([*parts, f"{_short(row.median('cpu_us'))} us"])


def _short(value: float) -> str:
    """Write three figures at most after which nothing is known."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def losses(rows: list[Row]) -> list[str]:
    """Name each peer that does more than we do, or for less; those that only answer are left out."""
    lines: list[str] = []
    for ours in (row for row in rows if row.contestant == OURS[row.suite]):
        words: list[str] = []
        for row in rows:
            if (row.suite, row.load) != (ours.suite, ours.load) or row.contestant in (ours.contestant, *NO_PEER):
                continue
            if row.contestant.startswith("zmqrt"):
                continue
            rate, cost = (statistics.median(row.ratios(ours, field)) for field in ("per_s", "cpu_us"))
            if rate > 1 or cost < 1:
                words.append(f"{row.contestant} does {rate:.2f} times as much for {cost:.2f} of the CPU time")
        if words:
            lines.append(f"- {ours.load}{STEPS[ours.suite]}: {'; '.join(words)}.")
    return lines or ["- nowhere in this run."]


def remarks(rows: list[Row]) -> list[str]:
    """Tell what a reader must know of single figures: spread, joined tokens, failures, a client at its limit."""
    lines: list[str] = []
    spreads = [max(rates) / max(min(rates), 1e-9) for row in rows if (rates := [one.per_s for one in row.rounds])]
    lines.append(
        f"From its slowest to its fastest round a contestant's rate differed by {statistics.median(spreads):.1f} times"
        f" (median; at most {max(spreads):.1f}): the machine had other work."
    )
    joined = [
        f"{row.contestant} {row.median('events_per_token'):.2f} ({row.load}{STEPS[row.suite]})"
        for row in rows
        if "stream" in row.load and row.median("events_per_token") < 0.9
    ]
    if joined:
        lines.append(f"Tokens that are there together may share an event: events a token are {', '.join(joined)}.")
    failed = [
        f"{row.contestant} {sum(one.failed for one in row.rounds)} ({row.load}{STEPS[row.suite]})"
        for row in rows
        if any(one.failed for one in row.rounds)
    ]
    if failed:
        lines.append(f"Requests that failed or never ended: {', '.join(failed)}.")
    busy = [f"{row.contestant}, {row.load}" for row in rows if row.median("client_share") > 0.9]
    if busy:
        lines.append(f"The process that asks was at its own limit, so these are lower bounds: {'; '.join(busy)}.")
    return lines


def goal(  # noqa: PLR0917 - the columns of GOALS
    rows: list[Row], suite: str, load: str, whose: str, over: str, field: str, sense: str, wanted: str
) -> str:
    """Write one line, if both were measured."""
    by = {row.contestant: row for row in rows if (row.suite, row.load) == (suite, load)}
    if whose not in by or (over and over not in by):
        return ""

    def values_of(who: str) -> list[float]:
        return by[who].ratios(by[over], field) if over else [getattr(one, field) for one in by[who].rounds]

    values = values_of(whose)
    found = statistics.median(values)
    bare = _short(statistics.median(values_of(BARE))) if whose == "zmqrt HTTP" and BARE in by else ""
    is_met = found >= float(wanted) if sense == "at least" else found <= float(wanted)
    what = f"{whose}: {FIGURES[field]}" + (f" / {over}'s" if over else "")
    spread = f"{_short(found)} ({_short(min(values))} to {_short(max(values))})"
    met = "met" if is_met else ""
    return f"| {load}{STEPS[suite]} | {what} | {sense} {float(wanted):,g} | {spread} | {met} | {bare} |"


# --- the broker alone ----------------------------------------------------------------------------------------------


def _roundtrip_part(report: bench_roundtrip.Report) -> list[str]:
    names = list(report.cases[0].samples)
    return [
        "## The broker alone",
        "",
        "`bench/bench_roundtrip.py`: a toy client keeps requests in flight, a toy worker sends each back at once, and",
        "something stands between them. `zmq.proxy` is libzmq's own, in C: no queues, leases, credit or routing. NATS",
        "has its server in the middle, gRPC nothing: its CPU is the server's. Their peers are the usual Python clients",
        "(nats-py, grpc.aio), which limit them; the peers of broker and proxy take what lies there at once. In each",
        "cell: requests a second, p50, and CPU us a request of what stands in the middle.",
        "",
        f"| in flight, bytes | {' | '.join(names)} | broker / proxy: requests/s (lowest to highest), CPU |",
        f"|---|{'---|' * len(names)}---|",
        *(_case(case, names) for case in report.cases),
        "",
        *_circumstances(report, f"medians of {len(report.cases[0].broker)} rounds of {report.seconds:g} s"),
        "",
    ]


def _case(case: Case, names: list[str]) -> str:
    cells = (_middle(case, name) if name in case.samples else "" for name in names)
    rates = case.ratios(bench_roundtrip.PROXY)
    cpu = statistics.median(case.ratios(bench_roundtrip.PROXY, "cpu_us"))
    ratio = f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f}), {cpu:.1f}"
    return f"| {case.in_flight}, {case.body_bytes:,} | {' | '.join(cells)} | {ratio} |"


def _middle(case: Case, name: str) -> str:
    rate, p50_us, cpu_us = (
        statistics.median(getattr(one, field) for one in case.samples[name])
        for field in ("requests_per_s", "p50_us", "cpu_us")
    )
    return f"{rate:,.0f}/s<br>{_short(p50_us)} us<br>{_short(cpu_us)} us"


def _circumstances(report: Circumstances, how: str) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    load = ", ".join(f"{one:.1f}" for one in report.load_average)
    return [
        f"Measured on {report.date}: {report.machine}, {report.cores} cores, load averages {load} at the end (the run",
        f"itself included); {how}. {versions}{f', commit {report.commit}' if report.commit else ''}.",
    ]


def _of(rows: list[Row], suites: tuple[str, ...]) -> list[Row]:
    return [row for row in rows if row.suite in suites]


def main() -> None:
    """Write page and plot."""
    PAGE.write_text(page(), encoding="utf-8")
    at = newest("path")
    if at and importlib.util.find_spec("matplotlib"):
        import path_plot

        rows = msgspec.json.decode(at.read_bytes(), type=bench_path.Report).rows
        plots = {"the whole path": _of(rows, _PATHS), "as a gateway": _of(rows, _GATEWAYS)}
        path_plot.draw(plots, STEPS, PLOT)


if __name__ == "__main__":
    main()
