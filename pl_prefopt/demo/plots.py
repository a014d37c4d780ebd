"""Figures of the demos' runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, ACCENT, WARM, SOFT = "#222222", "#1f6fb4", "#d1603d", "#9aa5ae"
PANELS = {
    "reward": ("Expected reward", "reward"),
    "kl": ("KL(policy ‖ reference)", "nats"),
    "kl_from_reference": ("KL(reference ‖ policy)", "nats"),
    "accuracy": ("Held-out pairs ranked right", "share"),
    "ndcg": ("NDCG of held-out lists", "NDCG"),
    "length": ("Expected length", "words"),
    "entropy": ("Entropy", "nats"),
    "leak": ("Probability of leaving the language", "share"),
    "reward_unseen": ("Expected reward on unseen topics", "reward"),
    "sentiment": ("Expected sentiment", "reward"),
    "brevity": ("Expected brevity", "reward"),
    "restraint": ("Expected restraint", "reward"),
}
"""Entry of a history -> title and unit of its curve."""


def reward_kl_figure(history: Sequence[Mapping[str, float]], best: Sequence[tuple[float, float]]) -> Figure:
    """Reward against KL to the reference over a run, below the curve that no policy can cross.

    Args:
        history: rows with step, reward and kl, in order.
        best: (KL, reward) of the optimal policies.
    """
    figure, axes = canvas(1, 1, (6.4, 4.4))
    ax = axes[0]
    kls, rewards = [h["kl"] for h in history], [h["reward"] for h in history]
    right = max(max(kls) * 1.25, 0.5)
    inside = [(k, r) for k, r in best if k <= right]
    ax.plot([k for k, _ in inside], [r for _, r in inside], color=SOFT, lw=2, label="best possible at each KL")
    ax.fill_between([k for k, _ in inside], [r for _, r in inside], inside[-1][1] * 1.12, color=SOFT, alpha=0.12, lw=0)
    ax.plot(kls, rewards, color=ACCENT, lw=1.5, marker="o", ms=4, label="this run")
    ax.plot(kls[:1], rewards[:1], "o", color=INK, ms=8, label="before (the reference)")
    ax.plot(kls[-1:], rewards[-1:], "o", color=WARM, ms=8, label=f"after {int(history[-1]['step'])} steps")
    ax.set(xlabel="KL(policy ‖ reference), nats, exact", ylabel="expected reward, exact", xlim=(-0.03 * right, right))
    ax.set_ylim(top=inside[-1][1] * 1.12)
    ax.set_title("What the reward costs")
    ax.legend(loc="lower right", frameon=False)
    return figure


def curves_figure(history: Sequence[Mapping[str, float]], names: Sequence[str]) -> Figure:
    """Entries of a history, names of `PANELS`, against the optimizer step, in two rows; absent ones are left out."""
    names = [name for name in names if any(name in h for h in history)]
    columns = (len(names) + 1) // 2
    figure, axes = canvas(2, columns, (4.2 * columns, 5.6))
    for spare in axes[len(names) :]:
        spare.remove()
    for ax, name in zip(axes, names, strict=False):
        title, unit = PANELS[name]
        points = [(h["step"], h[name]) for h in history if name in h]
        ax.plot([p[0] for p in points], [p[1] for p in points], color=ACCENT, lw=1.5, marker="o", ms=3.5)
        if name == "accuracy":
            ax.axhline(0.5, color=SOFT, ls="--", lw=1)
            ax.set_ylim(0.45, 1.0)
        elif points:
            ax.axhline(points[0][1], color=SOFT, ls="--", lw=1)
        if name == "length":
            ax.set_ylim(1.0, max(4.0, *(p[1] for p in points)))
        ax.set(ylabel=unit, xlabel="optimizer step")
        ax.set_title(title)
    return figure


def front_figure(points: Mapping[str, Sequence[Mapping[str, float]]], pair: tuple[str, str]) -> Figure:
    """Two expected rewards against each other: a curve for every method with several weights, a dot for the others.

    Args:
        points: method -> measures, in the order of the weights; "optimum" is drawn as a soft curve.
        pair: entries of the measures, names of `PANELS`.
    """
    figure, axes = canvas(1, 1, (6.4, 4.8))
    ax = axes[0]
    colors = iter((INK, "#7b5ea7", "#3a8f5d", ACCENT, WARM, "#b0872d"))
    for label, rows in points.items():
        x, y = ([row[name] for row in rows] for name in pair)
        if label == "optimum":
            right = 1.15 * max(row[pair[0]] for name, rest in points.items() if name != label for row in rest)
            shown = [i for i, value in enumerate(x) if value <= right]
            xs, ys = [x[i] for i in shown], [y[i] for i in shown]
            ax.plot(xs, ys, color=SOFT, lw=2, zorder=1, label="optimum of MODPO's loss")
        else:
            ax.plot(x, y, marker="o", ms=6 if len(rows) > 1 else 8, lw=1.5, color=next(colors), label=label)
    ax.set(xlabel=PANELS[pair[0]][0] + ", exact", ylabel=PANELS[pair[1]][0] + ", exact")
    ax.set_title("Two objectives")
    ax.legend(loc="lower center", frameon=False)
    return figure


def canvas(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Figure of `size` inches and its panels, row by row."""
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e9ec", lw=0.8)
        ax.set_axisbelow(True)
        ax.title.set_fontsize(11)
    return figure, list(axes.flat)
