"""Draws waits as they were told against those that came, for bench_calibration.py; needs matplotlib."""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt


def draw(points: list[tuple[float, float]], near: float, to: Path) -> None:
    """Draw a point a telling, the line of those that were right, and the band of those that nearly were."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "zmqrt"  # so that the same report gives the same file
    figure, axis = plt.subplots(figsize=(6, 6), layout="constrained")
    most = max(max(point) for point in points)
    axis.fill_between([0, most], [0, most / near], [0, most * near], alpha=0.15, label=f"within {near}x")
    axis.plot([0, most], [0, most], linewidth=0.8)
    axis.scatter(*zip(*points, strict=True), s=4, alpha=0.4, rasterized=False)
    axis.set(xlabel="told: seconds to wait", ylabel="waited", xlim=(0, most), ylim=(0, most))
    axis.legend()
    to.parent.mkdir(exist_ok=True)
    figure.savefig(to, metadata={"Date": None})
