"""MODPO: several objectives, one of which has the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt.losses._checks import finite, positive, rows
from pl_prefopt.losses._math import softplus, wide


def modpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_margins: Tensor,
    rejected_margins: Tensor,
    *,
    weights: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Multi-objective DPO: l(R_w - R_l), R = (beta r - sum_{i >= 1} w_i m_i) / w_0 (Zhou et al. 2023, 2310.03708).

    Args:
        chosen: (B,) log-ratio.
        rejected: (B,).
        chosen_margins: (B, M) rewards m_i of the other objectives; only differences within a pair matter.
        rejected_margins: (B, M).
        weights: (1 + M,) not negative, w_0 > 0, sum 1; w_0 belongs to the labels. weights = (1,) is DPO.
        beta: > 0.
    """
    rows(chosen=chosen, rejected=rejected)
    positive("beta", beta)
    for name, value in (("chosen_margins", chosen_margins), ("rejected_margins", rejected_margins)):
        if value.dim() != 2 or value.shape[0] != chosen.shape[0] or value.shape != chosen_margins.shape:
            raise ValueError(f"{name} must be (B, M) = ({chosen.shape[0]}, M), got shape {tuple(value.shape)}")
        finite(name, value)
    w = modpo_weights(weights, chosen_margins.shape[1]).to(wide(chosen))
    other = (chosen_margins.to(w) - rejected_margins.to(w)) @ w[1:]
    return softplus(-(beta * (wide(chosen) - wide(rejected)) - other) / w[0])


def modpo_weights(weights: Tensor | list[float], margins: int) -> Tensor:
    """Check the weights of `modpo_loss` and return them as a tensor.

    Raises:
        ValueError: a wrong count, a negative weight, w_0 = 0, or a sum other than 1.
    """
    values = [float(w) for w in weights]
    shown = ", ".join(f"{v:g}" for v in values)
    if not values or len(values) != margins + 1:
        raise ValueError(f"weights must be (1 + M,) = ({margins + 1},) for M = {margins} margins, got {shown}")
    if not (all(v >= 0 for v in values) and values[0] > 0):
        raise ValueError(f"weights must not be negative and the first must be > 0, got {shown}")
    if not abs(sum(values) - 1) <= 1e-4:
        raise ValueError(f"weights must sum to 1, got {shown} with sum {sum(values):.4f}; divide them by their sum")
    return torch.tensor(values, dtype=torch.float64)
