"""Residuals and errors of a small denoiser, for losses and objectives of denoising errors."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt.scores import PairScores

F64 = torch.float64


def residuals(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prediction minus target: policy on winner and loser, reference on both; (B, C, h, w) float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(4, 5, 3, 2, 2, generator=g, dtype=F64).unbind(0)  # type: ignore[return-value]


def error(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def scores_of(policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> PairScores:
    """Scores as the image module makes them."""
    own, other = (torch.stack([error(v) for v in pair], 1) for pair in (policy, reference))
    products = torch.stack([(a * b).flatten(1).mean(1) for a, b in zip(policy, reference, strict=True)], 1)
    return PairScores(logratios=(other - own) / 2, errors=own, ref_errors=other, outputs={"error_products": products})


W, L, RW, RL = residuals()
ERRORS = [error(x) for x in (W, L, RW, RL)]
SCORES = scores_of((W, L), (RW, RL))
