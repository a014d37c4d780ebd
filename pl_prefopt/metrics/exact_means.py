"""Exact means over a whole evaluation set, whatever the batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class ExactMeans(Metric):
    """Means of named per-row quantities as sums and counts, exact over ranks and uneven last batches.

    mean_name = (sum over all rows of all ranks) / (number of those rows), accumulated in float64.

    Args:
        names: the quantities, fixed for the life of the metric so that every rank holds the same state.

    Example:
        >>> import torch
        >>> m = ExactMeans(["accuracy"])
        >>> m.update({"accuracy": torch.tensor([1.0, 0.0])}); m.update({"accuracy": torch.tensor([1.0])})
        >>> round(float(m.compute()["accuracy"]), 4)
        0.6667
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add rows: `values[name]` is (B,)."""
        unknown = values.keys() - set(self.names)
        if unknown:
            raise ValueError(
                f"values must be among {', '.join(self.names)}, got the unknown quantities {sorted(unknown)}"
            )
        for i, name in enumerate(self.names):
            if name in values:
                rows = values[name].detach().double()
                self.sums[i] += rows.sum()
                self.counts[i] += rows.numel()

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of every quantity that has at least one row, float32."""
        means = (self.sums / self.counts).float()
        return {name: means[i] for i, name in enumerate(self.names) if self.counts[i] > 0}
