"""Objectives on denoising errors, for image and audio modules; errors are means over elements unless a module sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import Objective, check_beta, given
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import positive, within


def _four(scores: PairScores, who: Objective) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Errors of the policy on winner and loser, then of the reference."""
    own, other = given(scores, "errors", who), given(scores, "ref_errors", who)
    return own[:, 0], own[:, 1], other[:, 0], other[:, 1]


class DenoisingSFT(Objective):
    """The denoising error of the chosen sample alone; training reads neither the rejected one nor a reference.

    Alone it is supervised fine-tuning (or pre-training), in a `Mixture` the anchor on the winner. Reward: minus the
    error. SFT before DPO hurts SDXL (2311.12908).
    """

    needs = frozenset({"errors"})
    reads_logratios = False

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return given(scores, "errors", self)[:, 0]

    def rewards(self, scores: PairScores) -> Tensor:
        """Minus the denoising error."""
        return -given(scores, "errors", self).detach()


class MaPO(Objective):
    """`mapo_loss`: margin-aware, no reference; reward = T f(error).

    Args:
        beta: weight of the ratio term, > 0.
        scale: s of f(x) = s x / (e^{s x} - 1), > 0.
        steps: T, number of training timesteps.
    """

    needs = frozenset({"errors", "rejected"})
    reads_logratios = False

    def __init__(self, beta: float = 0.1, scale: float = 0.5, steps: int = 1000) -> None:
        self.beta = check_beta(beta)
        positive("scale", scale)
        positive("steps", steps)
        self.scale = scale
        self.steps = steps

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        errors = given(scores, "errors", self)
        return losses.mapo_loss(errors[:, 0], errors[:, 1], beta=self.beta, scale=self.scale, steps=self.steps)

    def rewards(self, scores: PairScores) -> Tensor:
        """T f(error): what the sigmoid compares, decreasing in the error."""
        x = self.scale * given(scores, "errors", self).detach().clamp(min=1e-6)
        return self.steps * x / torch.expm1(x)


class DiffusionKTO(Objective):
    """`diffusion_kto_loss` on both samples of a row: the first is desirable, the second, where there is one, is not.

    The two need not belong together: unpaired data come as rows of one desirable and one undesirable sample.
    The baseline is the mean gain over the batch at hand, so results depend on the size of a micro-batch.

    Args:
        beta: > 0.
        desirable_weight: >= 0.
        undesirable_weight: >= 0; .25 gives desirable samples the paper's share of 80 %.
    """

    needs = frozenset({"reference", "errors", "rejected"})
    reads_logratios = False

    def __init__(self, beta: float = 1000.0, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        self.beta = check_beta(beta)
        within("desirable_weight", desirable_weight, 0.0, math.inf, open_high=True)
        within("undesirable_weight", undesirable_weight, 0.0, math.inf, open_high=True)
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) sum over the samples of a row."""
        gains = given(scores, "ref_errors", self) - given(scores, "errors", self)
        desirable = torch.zeros_like(gains, dtype=torch.bool)
        desirable[:, 0] = True
        out = losses.diffusion_kto_loss(
            gains.flatten(),
            desirable.flatten(),
            gains.detach().mean().clamp(min=0),
            beta=self.beta,
            weights=(self.desirable_weight, self.undesirable_weight),
        )
        return out.view_as(gains).sum(1)

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta times the gain e_ref - e_policy."""
        return 2 * self.beta * scores.logratios.detach()


class LinearDPO(Objective):
    """`linear_dpo_loss`; use it with a moving reference (ReferenceSync with a small alpha).

    Args:
        beta: > 0; 100 (SD 1.5), 500 (SDXL), 5000 (SD3).
        eta: least weight, in [0, 1/2).
    """

    needs = frozenset({"reference", "errors", "rejected"})
    reads_logratios = False

    def __init__(self, beta: float = 100.0, eta: float = 1e-3) -> None:
        self.beta = check_beta(beta)
        within("eta", eta, 0.0, 0.5, open_high=True)
        self.eta = eta

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.linear_dpo_loss(*_four(scores, self), beta=self.beta, eta=self.eta)


class DSPO(Objective):
    """`dspo_loss`: score matching towards the human preference's score.

    Args:
        beta: > 0; .01 for SD 1.5.
    """

    needs = frozenset({"reference", "errors", "error_products", "rejected"})
    reads_logratios = False

    def __init__(self, beta: float = 0.01) -> None:
        self.beta = check_beta(beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss.

        Raises:
            ValueError: scores without the products of residuals.
        """
        products = scores.outputs.get("error_products")
        if products is None:
            raise ValueError("DSPO needs scores.outputs['error_products'], which a module fills in for this objective")
        return losses.dspo_loss(*_four(scores, self), products[:, 0], beta=self.beta)
