"""Objectives on a chosen and a rejected sample."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.losses.divergence import DIVERGENCES
from pl_prefopt.objectives.base import Objective, check_average, check_beta, given, reduce_by, token_mean
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, within


class DPO(Objective):
    """`dpo_loss`; a `preference_prob` column makes labels soft (q = 1 - eps), a `margin` column is subtracted.

    Args:
        beta: inverse temperature, > 0.
        label_smoothing: probability in [0, 1/2) that a label is wrong (cDPO); a `preference_prob` column overrides it.
        margin: reward margin of every pair, added to the `margin` column.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, margin: float = 0.0) -> None:
        self.beta = check_beta(beta)
        within("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
        within("margin", margin, -math.inf, math.inf)
        self.label_smoothing = label_smoothing
        self.margin = margin

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        prob = scores.columns.get("preference_prob")
        eps = self.label_smoothing if prob is None else 1 - prob
        margin = scores.columns.get("margin", 0.0) + self.margin
        return losses.dpo_loss(scores.chosen, scores.rejected, beta=self.beta, label_smoothing=eps, margin=margin)


class NormalizedDPO(DPO):
    """DPO on log-ratios per token: Tulu 3's normalised DPO, TRL's sigmoid_norm. Unlike SimPO it has a reference."""

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean over tokens."""
        return token_mean(values, mask, weights)


class LDDPO(DPO):
    """DPO whose token sums weigh what lies beyond the pair's common length by alpha (LD-DPO, 2409.06411).

    Args:
        beta: > 0.
        alpha: in [0, 1]; 1 is DPO, 0 truncates to the common length. The paper tunes it per model; TRL suggests .5.
        label_smoothing: as in `DPO`.
        margin: as in `DPO`.
    """

    def __init__(
        self, beta: float = 0.1, alpha: float = 0.5, label_smoothing: float = 0.0, margin: float = 0.0
    ) -> None:
        super().__init__(beta, label_smoothing, margin)
        within("alpha", alpha, 0.0, 1.0)
        self.alpha = alpha

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Length-desensitised sum over each sample's tokens; the common length is that of chosen and rejected."""
        values = values if weights is None else values * weights
        shared = mask[:, :2].sum(-1).amin(-1, keepdim=True).expand(mask.shape[:2])
        flat = losses.length_desensitized_sum(
            values.flatten(0, 1), mask.flatten(0, 1), shared.flatten(), alpha=self.alpha
        )
        return flat.view(mask.shape[:2])


class IPO(Objective):
    """`ipo_loss`.

    Args:
        beta: tau of the paper, > 0.
        average: "sum" of log-ratios over tokens (original code, OpenRLHF, NeMo) or "mean" (TRL, which the IPO authors
            confirmed); the target is 1/(2 beta) in both.
    """

    def __init__(self, beta: float = 0.1, average: str = "sum") -> None:
        self.beta = check_beta(beta)
        self.average = check_average(average)

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum or mean, as `average` says."""
        return reduce_by(self.average, values, mask, weights)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.ipo_loss(scores.chosen, scores.rejected, beta=self.beta)


class _Plain(Objective):
    """An objective with beta only."""

    loss: ClassVar[str]

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = check_beta(beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return getattr(losses, self.loss)(scores.chosen, scores.rejected, beta=self.beta)


class Hinge(_Plain):
    """`hinge_loss` (SLiC, RSO)."""

    loss = "hinge_loss"


class NCA(_Plain):
    """`nca_loss`."""

    loss = "nca_loss"


class SPPO(_Plain):
    """`sppo_loss` with hard labels."""

    loss = "sppo_loss"


class APOZero(_Plain):
    """`apo_zero_loss`."""

    loss = "apo_zero_loss"


class APODown(_Plain):
    """`apo_down_loss`."""

    loss = "apo_down_loss"


class BCO(Objective):
    """`bco_loss`.

    Args:
        beta: > 0.
        delta: reward shift; a fixed number, so that batch size and order do not matter (the paper uses a running mean).
    """

    def __init__(self, beta: float = 0.1, delta: float = 0.0) -> None:
        self.beta = check_beta(beta)
        within("delta", delta, -math.inf, math.inf)
        self.delta = delta

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.bco_loss(scores.chosen, scores.rejected, beta=self.beta, delta=self.delta)


class RobustDPO(Objective):
    """`robust_dpo_loss`.

    Args:
        beta: > 0.
        label_smoothing: rate of flipped labels in [0, 1/2).
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1) -> None:
        self.beta = check_beta(beta)
        within("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
        self.label_smoothing = label_smoothing

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.robust_dpo_loss(
            scores.chosen, scores.rejected, beta=self.beta, label_smoothing=self.label_smoothing
        )


class EXO(Objective):
    """`exo_loss`.

    Args:
        beta: > 0.
        label_smoothing: in (0, 1/2).
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 1e-3) -> None:
        self.beta = check_beta(beta)
        within("label_smoothing", label_smoothing, 0.0, 0.5, open_low=True, open_high=True)
        self.label_smoothing = label_smoothing

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.exo_loss(scores.chosen, scores.rejected, beta=self.beta, label_smoothing=self.label_smoothing)


class DiscoPOP(Objective):
    """`discopop_loss`.

    Args:
        beta: > 0.
        tau: temperature of the mixture in (0, 1).
    """

    def __init__(self, beta: float = 0.1, tau: float = 0.05) -> None:
        self.beta = check_beta(beta)
        within("tau", tau, 0.0, 1.0, open_low=True, open_high=True)
        self.tau = tau

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.discopop_loss(scores.chosen, scores.rejected, beta=self.beta, tau=self.tau)


class DPOP(Objective):
    """`dpop_loss` (Smaug; unverified).

    Args:
        beta: > 0.
        penalty: lambda, 5 to 50.
    """

    def __init__(self, beta: float = 0.1, penalty: float = 5.0) -> None:
        self.beta = check_beta(beta)
        within("penalty", penalty, 0.0, math.inf, open_high=True)
        self.penalty = penalty

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.dpop_loss(scores.chosen, scores.rejected, beta=self.beta, penalty=self.penalty)


class TDPO(Objective):
    """`tdpo_loss`; needs the full distributions of policy and reference, so its reference cannot be cached.

    Args:
        beta: > 0.
        alpha: weight of the KL difference (tdpo2).
        variant: "tdpo2" (the paper's best) or "tdpo1".
    """

    needs = Objective.needs | {"kl"}

    def __init__(self, beta: float = 0.1, alpha: float = 0.5, variant: str = "tdpo2") -> None:
        self.beta = check_beta(beta)
        within("alpha", alpha, 0.0, math.inf, open_high=True)
        choice("variant", variant, ("tdpo2", "tdpo1"))
        self.alpha = alpha
        self.variant = variant

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        kl = given(scores, "kl", self)
        return losses.tdpo_loss(
            scores.chosen, scores.rejected, kl[:, 0], kl[:, 1],
            beta=self.beta, alpha=self.alpha, variant=self.variant,
        )  # fmt: skip

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * (log-ratio + sequential KL), as the official code logs."""
        return self.beta * (scores.logratios + given(scores, "kl", self)).detach()


class FDPO(Objective):
    """`f_dpo_loss`.

    Args:
        beta: > 0; the official scripts use .9 (reverse KL), .3 (JSD), .03 (forward KL), .3 and .9 (alpha) on HH.
        divergence: reverse_kl, forward_kl, jsd or alpha.
        alpha: the paper's alpha in (0, 1).
    """

    def __init__(self, beta: float = 0.1, divergence: str = "reverse_kl", alpha: float = 0.5) -> None:
        self.beta = check_beta(beta)
        choice("divergence", divergence, DIVERGENCES)
        within("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
        self.divergence = divergence
        self.alpha = alpha

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.f_dpo_loss(
            scores.chosen, scores.rejected, beta=self.beta, divergence=self.divergence, alpha=self.alpha
        )

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * s(r), the reward that the loss compares."""
        return self.beta * losses.f_score(scores.logratios.detach(), divergence=self.divergence, alpha=self.alpha)
