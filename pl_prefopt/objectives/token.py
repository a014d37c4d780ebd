"""Objectives that look inside the token sum; the losses are in `pl_prefopt.losses.token`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.losses.token import VARIANTS
from pl_prefopt.objectives.base import Objective, module_output
from pl_prefopt.objectives.pairwise import DPO
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, positive, within


@dataclass
class TDPO(Objective):
    """`tdpo_loss`; needs the full distributions of policy and reference, so its reference cannot be cached.

    Args:
        beta: > 0.
        alpha: weight of the KL difference (tdpo2), >= 0.
        variant: "tdpo2" (the paper's best) or "tdpo1".
    """

    needs = Objective.needs | {"kl"}

    beta: float = 0.1
    alpha: float = 0.5
    variant: str = "tdpo2"

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("alpha", self.alpha, 0.0, math.inf, open_high=True)
        choice("variant", self.variant, VARIANTS)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        kl = module_output(scores, "kl", self)
        return losses.tdpo_loss(
            scores.chosen, scores.rejected, kl[:, 0], kl[:, 1],
            beta=self.beta, alpha=self.alpha, variant=self.variant,
        )  # fmt: skip

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * (log-ratio + sequential KL), as the official code logs."""
        return self.beta * (scores.logratios + module_output(scores, "kl", self)).detach()


@dataclass
class LDDPO(Objective):
    """DPO whose token sums weigh tokens beyond the pair's common length by alpha (LD-DPO, 2409.06411).

    Args:
        beta: > 0.
        alpha: in [0, 1]; 1 is DPO, 0 truncates to the common length. The paper tunes it per model; TRL suggests .5.
        label_smoothing: as in `DPO`.
        margin: as in `DPO`.
    """

    beta: float = 0.1
    alpha: float = 0.5
    label_smoothing: float = 0.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        self._dpo = DPO(self.beta, self.label_smoothing, self.margin)
        within("alpha", self.alpha, 0.0, 1.0)

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Length-desensitised sum over each sample's tokens; the common length is that of chosen and rejected."""
        values = values if weights is None else values * weights
        shared = mask[:, :2].sum(-1).amin(-1, keepdim=True).expand(mask.shape[:2])
        sums = losses.length_desensitized_sum(
            values.flatten(0, 1), mask.flatten(0, 1), shared.flatten(), alpha=self.alpha
        )
        return sums.view(mask.shape[:2])

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss of `DPO`, with its data columns."""
        return self._dpo(scores)
