"""Objectives on several rewards."""

from __future__ import annotations

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.losses.multi import SCALES
from pl_prefopt.objectives.base import Objective, check_beta, column
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, list_mask, positive


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


class PAMA(Objective):
    """`pama_loss` with the `margins` column (B, K, M): rewards of all objectives, none of which has weights or labels.

    The advantage of a sample is (reward - mean) / (std + 1e-8) over its list, with the unbiased std, for each objective
    by itself. **Group advantages are ours**: the paper has a value head per objective and ratios per token. Wants
    samples of the reference (`PreferenceRounds` gives new ones), best more than two per prompt.

    Args:
        clip: epsilon of the ratio of sequences, > 0; .2 allows one sample 1.2 times its reference probability.
        scale: "term" or "batch", as in `pama_loss`.
    """

    needs = Objective.needs | {"list", "margins"}

    def __init__(self, clip: float = 0.2, scale: str = "term") -> None:
        positive("clip", clip)
        choice("scale", scale, SCALES)
        self.clip = clip
        self.scale = scale

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        rewards = column(scores, "margins", self)
        real = list_mask("list_mask", scores.mask, scores.logratios, 2)
        kept, count = real[..., None], real.sum(1)[:, None, None]
        mean = (rewards * kept).sum(1, keepdim=True) / count
        variance = ((rewards - mean).square() * kept).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        advantages = (rewards - mean) / (variance.sqrt() + 1e-8)
        return losses.pama_loss(scores.logratios, advantages, clip=self.clip, scale=self.scale, mask=real)
