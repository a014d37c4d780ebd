"""What is in image data, and what the geometry does to it, before anything is trained."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from pl_prefopt.datamodules.image.rows import ImagePairs

QUANTILES = (0.0, 0.5, 1.0)


def image_statistics(rows: ImagePairs) -> dict[str, Any]:
    """Return what a split holds.

    Keys: pairs; counts (read, dropped/<reason>, changed/<kind>, ties/<policy>); captions, images (distinct); sides
    (quantiles of height and width of the better images, in pixels); enlarged (share of better images smaller than the
    frame); reshaped (share of pairs whose images differ in aspect ratio by more than 2 %, so that the crop, unless it
    is "pad", leaves out more of one); cut (mean share of a better image's area that the crop leaves out); rejected
    (enlarged and cut of the other images); stretched (number of better and of other images whose aspect ratio is
    changed by more than 2 %, by rounding to whole pixels); buckets ("HxW" -> pairs).
    """
    frames = [rows.geometry.without_randomness().view(rows.sizes(i), 0, i) for i in range(len(rows))]
    size = np.array([f.size for f in frames], float)
    originals = [np.array([rows.sizes(i)[k] for i in range(len(rows))], float) for k in (0, 1)]
    scaled = [np.array([f.scaled[k] for f in frames], float) for k in (0, 1)]
    aspects = [sides[:, 0] / sides[:, 1] for sides in originals]
    chosen, rejected = (_changes(original, after, size) for original, after in zip(originals, scaled, strict=True))
    digests = {d for i in range(len(rows)) for d in rows.digests(i)}
    return {
        "pairs": len(rows),
        "counts": rows.counts,
        "captions": len(set(rows.captions)),
        "images": len(digests),
        "sides": {
            n: [float(np.quantile(originals[0][:, k], q)) for q in QUANTILES] for k, n in enumerate(("height", "width"))
        },
        **chosen,
        "reshaped": float(np.mean(np.abs(np.log(aspects[0] / aspects[1])) > 0.02)),
        "rejected": rejected,
        "stretched": [
            int(np.sum(np.abs(np.log(after[:, 0] / after[:, 1] / aspect)) > 0.02))
            for after, aspect in zip(scaled, aspects, strict=True)
        ],
        "buckets": dict(Counter(f"{f.size[0]}x{f.size[1]}" for f in frames)),
    }


def _changes(original: np.ndarray, scaled: np.ndarray, size: np.ndarray) -> dict[str, float]:
    """Shares of enlarged images and of area that is cut off; all sizes are (N, 2)."""
    return {
        "enlarged": float(np.mean((scaled > original).any(1))),
        "cut": float(np.mean(np.maximum(0.0, 1 - size.prod(1) / scaled.prod(1)))),
    }


def describe_images(name: str, stats: dict[str, Any]) -> str:
    """Return the statistics in a few lines of text."""
    counts = ", ".join(f"{k} {v}" for k, v in stats["counts"].items() if v)
    sides = ", ".join(f"{k} {v[0]:.0f}..{v[2]:.0f} px (median {v[1]:.0f})" for k, v in stats["sides"].items())
    buckets = ", ".join(f"{k}: {v}" for k, v in stats["buckets"].items())
    shares = ", ".join(f"{k} {stats[k]:.1%}" for k in ("enlarged", "reshaped", "cut"))
    others = ", ".join(f"{k} {v:.1%}" for k, v in stats["rejected"].items())
    shares += (
        f" (rejected images: {others}); stretched {stats['stretched'][0]} chosen, {stats['stretched'][1]} rejected"
    )
    head = f"{name}: {stats['pairs']} pairs of {stats['images']} images, {stats['captions']} captions ({counts})"
    return f"{head}\n  {sides}; {shares}; {buckets}"
