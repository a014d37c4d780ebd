"""Direct discriminative optimisation: real samples against the reference's own, unpaired."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import Objective, check_beta, output
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import within


class DDO(Objective):
    """`ddo_loss`: index 0 of every row is a real sample, index 1 one that the reference made; they need not match.

    log-ratio r = log p/p_ref, or its denoising surrogate -(e - e_ref)/2 (Zheng et al. 2025, 2503.01103). The paper's
    surrogate has no half and sums errors over a sample's D numbers, so its beta becomes 2 beta here with error sums and
    2 D beta with error means: .02 there is 31 here for 3 x 16 x 16 pixels and means.

    Args:
        alpha: weight of the generated samples, >= 0; .5 to 6 for diffusion, 10 to 100 autoregressive (unverified).
        beta: > 0; below 1 on the scale of likelihoods it overshoots towards p_ref^(1-1/beta) p_data^(1/beta).
        alpha_empty: alpha of rows without caption (column `text_drop`), 0 in the authors' advice, so that these keep
            plain likelihood of data; None treats all rows alike.
        normalize: divide by max(alpha, 1), as for autoregressive models.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 0.02, alpha_empty: float | None = None, normalize: bool = False
    ) -> None:
        within("alpha", alpha, 0.0, math.inf, open_high=True)
        if alpha_empty is not None:
            within("alpha_empty", alpha_empty, 0.0, math.inf, open_high=True)
        self.alpha = alpha
        self.beta = check_beta(beta)
        self.alpha_empty = alpha_empty
        self.normalize = normalize

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss of a real and a generated sample.

        Raises:
            ValueError: `alpha_empty` is set and the batch does not say which captions were dropped.
        """
        loss = losses.ddo_loss(scores.chosen, scores.rejected, alpha=self.alpha, beta=self.beta)
        if self.alpha_empty is not None:
            empty = losses.ddo_loss(scores.chosen, scores.rejected, alpha=self.alpha_empty, beta=self.beta)
            loss = torch.where(output(scores, "text_drop", self).bool(), empty, loss)
        return loss / max(self.alpha, 1.0) if self.normalize else loss
