"""Parts of the claims' figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pl_prefopt.demo.plots import ACCENT, INK, SOFT, WARM

COLOURS = (ACCENT, WARM, "#4c9a6a", "#8a63a8", INK, SOFT)


def canvas(columns: int = 1, width: float = 6.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure with `columns` panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e9ec", lw=0.8)
        ax.set_axisbelow(True)
    return figure, list(axes.flat)


def paths(ax: Axes, runs: Sequence[Sequence[Sequence[float]]], label: str, colour: str) -> None:
    """One thin line of (x, y) points per seed."""
    for i, run in enumerate(runs):
        x, y = zip(*run, strict=True)
        ax.plot(x, y, color=colour, lw=1.1, marker="o", ms=2.5, alpha=0.75, label=label if i == 0 else None)


def band(ax: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], label: str, colour: str) -> None:
    """Mean line over seeds with the range between the extremes."""
    values = np.asarray(runs, dtype=float)
    ax.plot(x, values.mean(0), color=colour, lw=1.6, marker="o", ms=3, label=label)
    ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0)


def dots(ax: Axes, groups: Sequence[tuple[str, Sequence[float]]], colours: Sequence[str] = COLOURS) -> None:
    """One column of dots per group, a dot per seed, a bar at the mean."""
    for i, (_, values) in enumerate(groups):
        colour = colours[i % len(colours)]
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        ax.plot(i + np.asarray(spread), values, "o", ms=4, color=colour, alpha=0.75)
        ax.plot([i - 0.25, i + 0.25], [np.mean(values)] * 2, color=colour, lw=2)
    ax.set_xticks(range(len(groups)), [name for name, _ in groups])
