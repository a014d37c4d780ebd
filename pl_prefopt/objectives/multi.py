"""Objectives on several rewards; the losses are in `pl_prefopt.losses.multi`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.losses.multi import SCALES
from pl_prefopt.objectives.base import Objective, data_column
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, list_mask, positive


@dataclass
class MODPO(Objective):
    """`modpo_loss` with the `margins` column (B, K, M): rewards of the other objectives for each sample.

    Args:
        weights: (1 + M) numbers, not negative, sum 1; the first, > 0, belongs to the labels. Default (.5, .5).
        beta: > 0.
    """

    needs = Objective.needs | {"margins"}

    weights: list[float] | None = None
    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        self.weights = [0.5, 0.5] if self.weights is None else self.weights
        losses.modpo_weights(self.weights, len(self.weights) - 1)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        margins = data_column(scores, "margins", self)
        return losses.modpo_loss(
            scores.chosen, scores.rejected, margins[:, 0], margins[:, 1],
            weights=self._weights(margins), beta=self.beta,
        )  # fmt: skip

    def rewards(self, scores: PairScores) -> Tensor:
        """R = (beta r - sum_i w_i m_i) / w_0, which the loss compares."""
        margins = data_column(scores, "margins", self).to(scores.logratios)
        weights = self._weights(margins).to(margins)
        return ((self.beta * scores.logratios - margins @ weights[1:]) / weights[0]).detach()

    def _weights(self, margins: Tensor) -> Tensor:
        """(1 + M,) weights, after a check that the data brings as many margins."""
        assert self.weights is not None
        return losses.modpo_weights(self.weights, margins.shape[-1])


@dataclass
class PAMA(Objective):
    """`pama_loss` with the `margins` column (B, K, M): rewards of all objectives, none of which has weights or labels.

    The advantage of a sample is (reward - mean) / (std + 1e-8) over its list, with the unbiased std, for each objective
    by itself. **Group advantages are ours**: the paper has a value head per objective and ratios per token. It
    expects samples of the reference (`PreferenceRounds` draws new ones), preferably more than two per prompt.

    Args:
        clip: epsilon of the ratio of sequences, > 0; .2 allows one sample 1.2 times its reference probability.
        scale: "term" or "batch", as in `pama_loss`.
    """

    needs = Objective.needs | {"list", "margins"}

    clip: float = 0.2
    scale: str = "term"

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        choice("scale", self.scale, SCALES)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        rewards = data_column(scores, "margins", self)
        real = list_mask("list_mask", scores.mask, scores.logratios, 2)
        inside, count = real[..., None], real.sum(1)[:, None, None]
        mean = (rewards * inside).sum(1, keepdim=True) / count
        variance = ((rewards - mean).square() * inside).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        advantages = (rewards - mean) / (variance.sqrt() + 1e-8)
        return losses.pama_loss(scores.logratios, advantages, clip=self.clip, scale=self.scale, mask=real)
