"""Objectives on several rewards."""

from __future__ import annotations

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import Objective, check_beta, column
from pl_prefopt.scores import PairScores


class MODPO(Objective):
    """`modpo_loss` with the `margins` column (B, K, M): rewards of the other objectives for each sample.

    Args:
        weights: (1 + M) numbers, not negative, sum 1; the first, > 0, belongs to the labels. Default (.5, .5).
        beta: > 0.
    """

    needs = Objective.needs | {"margins"}

    def __init__(self, weights: list[float] | None = None, beta: float = 0.1) -> None:
        self.beta = check_beta(beta)
        weights = [0.5, 0.5] if weights is None else weights
        losses.modpo_weights(weights, len(weights) - 1)
        self.weights = weights

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        margins = column(scores, "margins", self)
        return losses.modpo_loss(
            scores.chosen, scores.rejected, margins[:, 0], margins[:, 1],
            weights=losses.modpo_weights(self.weights, margins.shape[-1]), beta=self.beta,
        )  # fmt: skip

    def rewards(self, scores: PairScores) -> Tensor:
        """R = (beta r - sum_i w_i m_i) / w_0, which the loss compares."""
        margins = column(scores, "margins", self).to(scores.logratios)
        other = margins @ losses.modpo_weights(self.weights, margins.shape[-1])[1:].to(margins)
        return ((self.beta * scores.logratios - other) / self.weights[0]).detach()
