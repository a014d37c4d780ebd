"""How often one score is higher than another."""

from __future__ import annotations

import torch
from torch import Tensor


def pairwise_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Share of pairs whose chosen sample scores higher; a tie counts one half.

    Args:
        chosen: (B,) any score.
        rejected: (B,).

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: shapes that differ, an empty batch, or NaN.

    Example:
        >>> import torch
        >>> pairwise_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.7500)
    """
    if chosen.dim() != 1 or chosen.shape != rejected.shape or not len(chosen):
        raise ValueError(
            f"chosen and rejected must be (B,), B > 0, got {tuple(chosen.shape)} and {tuple(rejected.shape)}"
        )
    missing = int(torch.isnan(chosen).sum() + torch.isnan(rejected).sum())
    if missing:
        raise ValueError(f"chosen and rejected must be numbers, got {missing} NaN")
    return wins(chosen, rejected).float().mean()


def wins(scores: Tensor, other: Tensor) -> Tensor:
    """1 where `scores` is higher than `other`, 1/2 where they are equal, else 0; float64 of the same shape."""
    return (scores > other).double() + (scores == other).double() / 2
