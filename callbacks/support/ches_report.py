"""What a CHES filter kept and dropped: a table, numbers, a histogram, and the extreme pairs to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Extremes = list[tuple[str, list[int]]]


def report(folder: Path, scores: np.ndarray, kept: Sequence[int], data: Any, shown: int = 5) -> None:
    """Write scores.parquet, summary.json, histogram.png, report.md and, where pairs are pictures, pairs.png.

    Args:
        folder: where to.
        scores: (N,) of all rows.
        kept: row ids.
        data: the datamodule; `texts(split, row)` gives {"prompt", "completions"}, `images(split, row)` both pictures
            of a row, (2, 3, H, W) in [0, 1]; without either, row ids have to do.
        shown: pairs at each end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    stays = np.isin(np.arange(len(scores)), kept)
    columns = {"row": np.arange(len(scores)), "ches": scores, "kept": stays}
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    edge = float(scores[stays].max())
    numbers = {"kept": len(kept), "dropped": len(scores) - len(kept), "edge": edge}
    (folder / "summary.json").write_text(json.dumps(numbers), encoding="utf-8")
    histogram(scores, stays).savefig(folder / "histogram.png", dpi=120)
    order = np.argsort(scores)
    extremes = [("most similar", order[::-1][:shown].tolist()), ("least similar", order[:shown].tolist())]
    lines = [f"{len(kept)} of {len(scores)} pairs kept, {len(scores) - len(kept)} dropped (scores.parquet)\n"]
    for title, rows in extremes:
        lines.append(f"\n## {title}\n")
        lines += [f"\nrow {i}, score {scores[i]:.4g}\n\n{text(data, i)}\n" for i in rows]
    (folder / "report.md").write_text("".join(lines), encoding="utf-8")
    if hasattr(data, "images"):
        pictures(data, extremes, scores).savefig(folder / "pairs.png", dpi=120)


def text(data: Any, row: int) -> str:
    """Markdown of one pair."""
    if hasattr(data, "texts"):
        found = data.texts("train", row)
        chosen, rejected = (str(c) for c in found["completions"][:2])
        return f"- prompt: {found['prompt']}\n- chosen: {chosen}\n- rejected: {rejected}"
    return "(see pairs.png)" if hasattr(data, "images") else "(the datamodule has neither `texts` nor `images`)"


def histogram(scores: np.ndarray, stays: np.ndarray) -> Any:
    """Figure of kept and dropped scores."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours, names = ["#2a6f97", "#c8553d"], [f"kept: {stays.sum()}", f"dropped: {(~stays).sum()}"]
    axes.hist([scores[stays], scores[~stays]], bins=60, stacked=True, color=colours, label=names)
    axes.set(xlabel="CHES score (right: more similar)", ylabel="training pairs")
    axes.legend(frameon=False)
    return figure


def pictures(data: Any, extremes: Extremes, scores: np.ndarray) -> Any:
    """Figure: a row per pair, chosen and rejected, the most similar pairs on the left, the least on the right."""
    from matplotlib.figure import Figure

    count = max(len(rows) for _, rows in extremes)
    figure = Figure(figsize=(7, 1.7 * count), layout="constrained")
    axes = figure.subplots(count, 4, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for side, (title, rows) in enumerate(extremes):
        for i, row in enumerate(rows):
            for k, picture in enumerate(data.images("train", row)):
                axes[i, 2 * side + k].imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy())
            axes[i, 2 * side].set_title(f"{title}: row {row}, {scores[row]:.3g}", fontsize=6, loc="left")
    return figure
