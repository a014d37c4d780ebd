"""How often one policy's samples are better than another's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from pl_prefopt.metrics.functional.pairwise_accuracy import wins


class WinRate(Metric):
    """Share of conditions whose sample scores higher than the base's sample under the same seed; a tie counts 1/2.

    Exact over ranks and uneven last batches.

    Example:
        >>> import torch
        >>> metric = WinRate()
        >>> metric.update(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]))
        >>> float(metric.compute())
        0.5
    """

    full_state_update = False
    higher_is_better = True
    wins: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("wins", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, base_scores: Tensor) -> None:
        """Add rows: judge's scores (B,) of the policy's and of the base's samples, any unit.

        Raises:
            ValueError: shapes that differ or are not (B,), scores that are not finite.
        """
        if scores.dim() != 1 or scores.shape != base_scores.shape:
            raise ValueError(
                f"scores and base_scores must both be (B,), got {tuple(scores.shape)} and {tuple(base_scores.shape)}"
            )
        if not bool(torch.isfinite(scores).all() and torch.isfinite(base_scores).all()):
            raise ValueError(
                "scores and base_scores must be finite, got NaN or infinity. Inspect what the judge returned"
            )
        self.wins += wins(scores, base_scores).sum()
        self.count += len(scores)

    def compute(self) -> Tensor:
        """Return the share in [0, 1], float32; NaN before the first row."""
        return (self.wins / self.count).float()
