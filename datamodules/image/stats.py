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
    (quantiles of height and width of the better images, in pixels); enlarged (share of images smaller than the frame);
    reshaped (share of pairs whose images differ in aspect ratio by more than 2 %, so that one is stretched, unless crop
    is "pad"); cut (mean share of an image's area that the crop leaves out); buckets ("HxW" -> pairs).
    """
    first, second = (np.array([rows.sizes(i)[k] for i in range(len(rows))], float) for k in (0, 1))
    geometry = rows.geometry.without_randomness()
    frames = [geometry.view(rows.sizes(i), 0, i) for i in range(len(rows))]
    scaled = np.array([f.scaled[0] for f in frames], float)
    size = np.array([f.size for f in frames], float)
    aspect = (first[:, 0] / first[:, 1]) / (second[:, 0] / second[:, 1])
    digests = {d for i in range(len(rows)) for d in rows.digests(i)}
    return {
        "pairs": len(rows),
        "counts": rows.counts,
        "captions": len(set(rows.captions)),
        "images": len(digests),
        "sides": {
            n: [float(np.quantile(first[:, k], q)) for q in QUANTILES] for k, n in enumerate(("height", "width"))
        },
        "enlarged": float(np.mean((scaled > first).any(1))),
        "reshaped": float(np.mean(np.abs(np.log(aspect)) > 0.02)),
        "cut": float(np.mean(np.maximum(0.0, 1 - size.prod(1) / scaled.prod(1)))),
        "buckets": dict(Counter(f"{f.size[0]}x{f.size[1]}" for f in frames)),
    }


def describe_images(name: str, stats: dict[str, Any]) -> str:
    """Return the statistics in a few lines of text."""
    counts = ", ".join(f"{k} {v}" for k, v in stats["counts"].items() if v)
    sides = ", ".join(f"{k} {v[0]:.0f}..{v[2]:.0f} px (median {v[1]:.0f})" for k, v in stats["sides"].items())
    buckets = ", ".join(f"{k}: {v}" for k, v in stats["buckets"].items())
    shares = ", ".join(f"{k} {stats[k]:.1%}" for k in ("enlarged", "reshaped", "cut"))
    head = f"{name}: {stats['pairs']} pairs of {stats['images']} images, {stats['captions']} captions ({counts})"
    return f"{head}\n  {sides}; {shares}; {buckets}"
