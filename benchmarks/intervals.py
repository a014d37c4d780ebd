"""Means over seeds, with how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Mean with its 95% Student-t interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2

    def text(self, digits: int) -> str:
        """Mean, then low to high."""
        return f"{self.mean:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def interval(values: Sequence[float]) -> Interval:
    """Mean +- t(0.975, n - 1) s / sqrt(n).

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    from scipy.stats import t

    if len(values) < 2 or not all(math.isfinite(v) for v in values):
        raise ValueError(f"an interval needs two or more finite values, got {list(values)}; run more seeds")
    x = np.asarray(values, dtype=float)
    half = float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)
