"""Draws what the whole path costs, for report.py; the one module here that needs matplotlib."""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from bench_path import Row
from matplotlib import pyplot as plt


def draw(plots: dict[str, list[Row]], steps: dict[str, str], to: Path) -> None:
    """Draw a plot a title: CPU time for each load and contestant, with lowest and highest."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "zmqrt"  # so that the same report gives the same file
    figure, axes = plt.subplots(1, len(plots), figsize=(13, 6), width_ratios=[7, 5], layout="constrained")
    for axis, (title, rows) in zip(axes, plots.items(), strict=True):
        loads = list(dict.fromkeys((row.load, row.suite) for row in rows))
        names = list(dict.fromkeys(row.contestant for row in rows))
        for at, name in enumerate(names):
            mine = [row for row in rows if row.contestant == name]
            places = [loads.index((row.load, row.suite)) + (at + 0.5) / len(names) * 0.8 - 0.4 for row in mine]
            middles = [row.median("cpu_us") for row in mine]
            spent = [[one.cpu_us for one in row.rounds] for row in mine]
            lows = [middle - min(one) for middle, one in zip(middles, spent, strict=True)]
            highs = [max(one) - middle for middle, one in zip(middles, spent, strict=True)]
            axis.bar(places, middles, 0.8 / len(names), yerr=[lows, highs], label=name, error_kw={"linewidth": 0.7})
        ticks = [f"{load}\n{steps[suite].removeprefix(', ')}" for load, suite in loads]
        axis.set_xticks(range(len(loads)), ticks, fontsize=8)
        axis.set_yscale("log")
        axis.set_title(title)
        axis.set_ylabel("CPU us for a request or a token")
        axis.legend(fontsize=8)
    to.parent.mkdir(exist_ok=True)
    figure.savefig(to, metadata={"Date": None})
