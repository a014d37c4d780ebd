"""f-DPO; the loss is in `pl_prefopt.losses.divergence`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.losses.divergence import DIVERGENCES
from pl_prefopt.objectives.base import Objective
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, positive, within


@dataclass
class FDPO(Objective):
    """`f_dpo_loss`.

    Args:
        beta: > 0; the official scripts use .9 (reverse KL), .3 (JSD), .03 (forward KL), .3 and .9 (alpha) on HH.
        divergence: reverse_kl, forward_kl, jsd or alpha.
        alpha: the paper's alpha in (0, 1).
    """

    beta: float = 0.1
    divergence: str = "reverse_kl"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        choice("divergence", self.divergence, DIVERGENCES)
        within("alpha", self.alpha, 0.0, 1.0, open_low=True, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.f_dpo_loss(
            scores.chosen, scores.rejected, beta=self.beta, divergence=self.divergence, alpha=self.alpha
        )

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * s(r), the reward that the loss compares."""
        return self.beta * losses.f_score(scores.logratios.detach(), divergence=self.divergence, alpha=self.alpha)
