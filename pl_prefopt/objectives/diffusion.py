"""Objectives on denoising errors, for image and audio modules; the losses are in `pl_prefopt.losses.diffusion`.

Errors are means over elements unless a module sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import Objective, module_output
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import positive, within


def _pair_errors(scores: PairScores, objective: Objective) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Errors of the policy on winner and loser, then of the reference, (B,) each."""
    policy, reference = module_output(scores, "errors", objective), module_output(scores, "ref_errors", objective)
    return policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1]


class DenoisingSFT(Objective):
    """The denoising error of the chosen sample alone; training reads neither the rejected one nor a reference.

    Alone it is supervised fine-tuning (or pre-training), in a `Mixture` the anchor on the winner. Reward: minus the
    error. SFT before DPO hurts SDXL (2311.12908).
    """

    needs = frozenset({"errors"})
    reads_logratios = False

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return module_output(scores, "errors", self)[:, 0]

    def rewards(self, scores: PairScores) -> Tensor:
        """Minus the denoising error."""
        return -module_output(scores, "errors", self).detach()


@dataclass
class MaPO(Objective):
    """`mapo_loss`: margin-aware, no reference; reward = T f(error).

    Args:
        beta: weight of the ratio term, > 0.
        scale: s of f(x) = s x / (e^{s x} - 1), > 0.
        steps: T, number of training timesteps.
    """

    needs = frozenset({"errors", "rejected"})
    reads_logratios = False

    beta: float = 0.1
    scale: float = 0.5
    steps: int = 1000

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        positive("scale", self.scale)
        positive("steps", self.steps)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        errors = module_output(scores, "errors", self)
        return losses.mapo_loss(errors[:, 0], errors[:, 1], beta=self.beta, scale=self.scale, steps=self.steps)

    def rewards(self, scores: PairScores) -> Tensor:
        """T f(error): what the sigmoid compares, decreasing in the error."""
        x = self.scale * module_output(scores, "errors", self).detach().clamp(min=1e-6)
        return self.steps * x / torch.expm1(x)


@dataclass
class DiffusionKTO(Objective):
    """`diffusion_kto_loss` on both samples of a row: the first is desirable, the second, where there is one, is not.

    The two need not belong together: unpaired data come as rows of one desirable and one undesirable sample.
    The baseline is the mean gain over the micro-batch, so results depend on its size.

    Args:
        beta: > 0.
        desirable_weight: >= 0.
        undesirable_weight: >= 0; .25 gives desirable samples the paper's share of 80 %.
    """

    needs = frozenset({"reference", "errors", "rejected"})
    reads_logratios = False

    beta: float = 1000.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("desirable_weight", self.desirable_weight, 0.0, math.inf, open_high=True)
        within("undesirable_weight", self.undesirable_weight, 0.0, math.inf, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) sum over the samples of a row."""
        gains = module_output(scores, "ref_errors", self) - module_output(scores, "errors", self)
        desirable = torch.zeros_like(gains, dtype=torch.bool)
        desirable[:, 0] = True
        loss = losses.diffusion_kto_loss(
            gains.flatten(),
            desirable.flatten(),
            gains.detach().mean().clamp(min=0),
            beta=self.beta,
            weights=(self.desirable_weight, self.undesirable_weight),
        )
        return loss.view_as(gains).sum(1)

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta times the gain e_ref - e_policy."""
        return 2 * self.beta * scores.logratios.detach()


@dataclass
class LinearDPO(Objective):
    """`linear_dpo_loss`; use it with a moving reference (ReferenceSync with a small alpha).

    Args:
        beta: > 0; 100 (SD 1.5), 500 (SDXL), 5000 (SD3).
        eta: least weight, in [0, 1/2).
    """

    needs = frozenset({"reference", "errors", "rejected"})
    reads_logratios = False

    beta: float = 100.0
    eta: float = 1e-3

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("eta", self.eta, 0.0, 0.5, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.linear_dpo_loss(*_pair_errors(scores, self), beta=self.beta, eta=self.eta)


@dataclass
class DSPO(Objective):
    """`dspo_loss`: score matching towards the human preference's score.

    Args:
        beta: > 0; .01 for SD 1.5.
    """

    needs = frozenset({"reference", "errors", "error_products", "rejected"})
    reads_logratios = False

    beta: float = 0.01

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss.

        Raises:
            ValueError: scores without the products of residuals.
        """
        products = module_output(scores, "error_products", self)
        return losses.dspo_loss(*_pair_errors(scores, self), products[:, 0], beta=self.beta)


@dataclass
class DDO(Objective):
    """`ddo_loss`: index 0 of every row is a real sample, index 1 a sample of the reference; they need not match.

    log-ratio r = log p/p_ref, or its denoising surrogate -(e - e_ref)/2 (Zheng et al. 2025, 2503.01103). The paper's
    surrogate has no half and sums errors over a sample's D numbers, so its beta becomes 2 beta here with error sums and
    2 D beta with error means: .02 there is 31 here for 3 x 16 x 16 pixels and means.

    Args:
        alpha: weight of the generated samples, >= 0; .5 to 6 for diffusion, 10 to 100 autoregressive (unverified).
        beta: > 0; below 1 on the scale of likelihoods it overshoots towards p_ref^(1-1/beta) p_data^(1/beta).
        alpha_empty: alpha of rows without caption (the module's output `text_drop`), 0 in the authors' advice, so that
            these keep plain likelihood of data; None treats all rows alike.
        normalize: divide by max(alpha, 1), as for autoregressive models.
    """

    alpha: float = 1.0
    beta: float = 0.02
    alpha_empty: float | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        within("alpha", self.alpha, 0.0, math.inf, open_high=True)
        if self.alpha_empty is not None:
            within("alpha_empty", self.alpha_empty, 0.0, math.inf, open_high=True)
        positive("beta", self.beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss of a real and a generated sample.

        Raises:
            ValueError: `alpha_empty` is set and the module does not say which captions were dropped.
        """
        loss = losses.ddo_loss(scores.chosen, scores.rejected, alpha=self.alpha, beta=self.beta)
        if self.alpha_empty is not None:
            empty = losses.ddo_loss(scores.chosen, scores.rejected, alpha=self.alpha_empty, beta=self.beta)
            loss = torch.where(module_output(scores, "text_drop", self).bool(), empty, loss)
        return loss / max(self.alpha, 1.0) if self.normalize else loss
