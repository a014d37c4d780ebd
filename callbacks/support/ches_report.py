"""What a CHES filter kept and dropped: a table, numbers, a histogram, and the extreme pairs to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

import numpy as np
from torch import Tensor

from pl_prefopt.utilities.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Extremes = list[tuple[str, list[int]]]
"""Title and row ids of the pairs at either end."""


class TextPair(TypedDict):
    """A pair in words."""

    prompt: str
    completions: Sequence[str]


@runtime_checkable
class ShowsTexts(Protocol):
    """A datamodule that shows a row as text."""

    def texts(self, split: str, index: int) -> TextPair:
        """Return the prompt and the completions of a row, the chosen one first."""
        ...


@runtime_checkable
class ShowsImages(Protocol):
    """A datamodule that shows a row as images."""

    def images(self, split: str, index: int) -> Tensor:
        """Return the chosen and the rejected image of a row, (2, 3, H, W) in [0, 1]."""
        ...


def report(folder: Path, scores: np.ndarray, kept: Sequence[int], data: object, extreme: int = 5) -> None:
    """Write scores.parquet, summary.json, histogram.png, report.md and, where pairs can be drawn, pairs.png.

    Args:
        folder: where to write.
        scores: (N,) of all rows.
        kept: row ids.
        data: the datamodule; the pairs are shown by its `texts(split, index)` or `images(split, index)`. Without
            either, row ids are given.
        extreme: number of pairs at each end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_kept = np.isin(np.arange(len(scores)), kept)
    pq.write_table(
        pa.table({"row": np.arange(len(scores)), "ches": scores, "kept": is_kept}), folder / "scores.parquet"
    )
    dropped = len(scores) - len(kept)
    write_json(folder / "summary.json", {"kept": len(kept), "dropped": dropped, "edge": float(scores[is_kept].max())})
    histogram(scores, is_kept).savefig(folder / "histogram.png", dpi=120)

    order = np.argsort(scores)
    extremes: Extremes = [
        ("most similar", order[::-1][:extreme].tolist()),
        ("least similar", order[:extreme].tolist()),
    ]
    lines = [f"{len(kept)} of {len(scores)} pairs kept, {dropped} dropped (scores.parquet)\n"]
    for title, rows in extremes:
        lines.append(f"\n## {title}\n")
        lines += [f"\nrow {row}, score {scores[row]:.4g}\n\n{pair_text(data, row)}\n" for row in rows]
    write_text(folder / "report.md", "".join(lines))
    if isinstance(data, ShowsImages):
        image_pairs(data, extremes, scores).savefig(folder / "pairs.png", dpi=120)


def pair_text(data: object, row: int) -> str:
    """Markdown of one training pair."""
    if isinstance(data, ShowsTexts):
        pair = data.texts("train", row)
        chosen, rejected = (str(completion) for completion in pair["completions"][:2])
        return f"- prompt: {pair['prompt']}\n- chosen: {chosen}\n- rejected: {rejected}"
    if isinstance(data, ShowsImages):
        return "(see pairs.png)"
    return f"({type(data).__name__} has no `texts(split, index)` or `images(split, index)` to show it)"


def histogram(scores: np.ndarray, is_kept: np.ndarray) -> Figure:
    """Figure of the scores of kept and of dropped pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours, labels = ["#2a6f97", "#c8553d"], [f"kept: {is_kept.sum()}", f"dropped: {(~is_kept).sum()}"]
    axes.hist([scores[is_kept], scores[~is_kept]], bins=60, stacked=True, color=colours, label=labels)
    axes.set(xlabel="CHES score (right: more similar)", ylabel="training pairs")
    axes.legend(frameon=False)
    return figure


def image_pairs(data: ShowsImages, extremes: Extremes, scores: np.ndarray) -> Figure:
    """Figure: a row per pair, chosen and rejected, the most similar pairs on the left, the least on the right."""
    from matplotlib.figure import Figure

    count = max(len(rows) for _, rows in extremes)
    figure = Figure(figsize=(7, 1.7 * count), layout="constrained")
    axes = figure.subplots(count, 4, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for side, (title, rows) in enumerate(extremes):
        for i, row in enumerate(rows):
            for k, image in enumerate(data.images("train", row)):
                axes[i, 2 * side + k].imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axes[i, 2 * side].set_title(f"{title}: row {row}, {scores[row]:.3g}", fontsize=6, loc="left")
    return figure
