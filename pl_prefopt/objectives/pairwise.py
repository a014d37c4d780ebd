"""Objectives on a chosen and a rejected sample; the losses are in `pl_prefopt.losses.pairwise`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import AVERAGES, Objective, reduce_by, token_mean
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, positive, within


@dataclass
class DPO(Objective):
    """`dpo_loss`; a `preference_prob` column makes labels soft (q = 1 - eps), a `margin` column is subtracted.

    Args:
        beta: inverse temperature, > 0.
        label_smoothing: probability in [0, 1/2) that a label is wrong (cDPO); a `preference_prob` column overrides it.
        margin: reward margin of every pair, added to the `margin` column.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("label_smoothing", self.label_smoothing, 0.0, 0.5, open_high=True)
        within("margin", self.margin, -math.inf, math.inf)

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


@dataclass
class IPO(Objective):
    """`ipo_loss`.

    Args:
        beta: tau of the paper, > 0.
        average: "sum" of log-ratios over tokens (original code, OpenRLHF, NeMo) or "mean" (TRL, which the IPO authors
            confirmed); the target is 1/(2 beta) in both.
    """

    beta: float = 0.1
    average: str = "sum"

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        choice("average", self.average, AVERAGES)

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum or mean, as `average` says."""
        return reduce_by(self.average, values, mask, weights)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.ipo_loss(scores.chosen, scores.rejected, beta=self.beta)


@dataclass
class _BetaOnly(Objective):
    """An objective whose loss has no other hyper-parameter than beta."""

    loss: ClassVar[Callable[..., Tensor]]

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return self.loss(scores.chosen, scores.rejected, beta=self.beta)


class Hinge(_BetaOnly):
    """`hinge_loss` (SLiC, RSO)."""

    loss = staticmethod(losses.hinge_loss)


class NCA(_BetaOnly):
    """`nca_loss`."""

    loss = staticmethod(losses.nca_loss)


class SPPO(_BetaOnly):
    """`sppo_loss` with hard labels."""

    loss = staticmethod(losses.sppo_loss)


class APOZero(_BetaOnly):
    """`apo_zero_loss`."""

    loss = staticmethod(losses.apo_zero_loss)


class APODown(_BetaOnly):
    """`apo_down_loss`."""

    loss = staticmethod(losses.apo_down_loss)


@dataclass
class BCO(Objective):
    """`bco_loss`.

    Args:
        beta: > 0.
        delta: reward shift; a fixed number, so that batch size and order do not matter (the paper uses a running mean).
    """

    beta: float = 0.1
    delta: float = 0.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("delta", self.delta, -math.inf, math.inf)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.bco_loss(scores.chosen, scores.rejected, beta=self.beta, delta=self.delta)


@dataclass
class RobustDPO(Objective):
    """`robust_dpo_loss`.

    Args:
        beta: > 0.
        label_smoothing: rate of flipped labels in [0, 1/2).
    """

    beta: float = 0.1
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("label_smoothing", self.label_smoothing, 0.0, 0.5, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.robust_dpo_loss(
            scores.chosen, scores.rejected, beta=self.beta, label_smoothing=self.label_smoothing
        )


@dataclass
class EXO(Objective):
    """`exo_loss`.

    Args:
        beta: > 0.
        label_smoothing: in (0, 1/2).
    """

    beta: float = 0.1
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("label_smoothing", self.label_smoothing, 0.0, 0.5, open_low=True, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.exo_loss(scores.chosen, scores.rejected, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclass
class DiscoPOP(Objective):
    """`discopop_loss`.

    Args:
        beta: > 0.
        tau: temperature of the mixture in (0, 1).
    """

    beta: float = 0.1
    tau: float = 0.05

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("tau", self.tau, 0.0, 1.0, open_low=True, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.discopop_loss(scores.chosen, scores.rejected, beta=self.beta, tau=self.tau)


@dataclass
class DPOP(Objective):
    """`dpop_loss` (Smaug; unverified).

    Args:
        beta: > 0.
        penalty: lambda, >= 0; 5 to 50 in the paper.
    """

    beta: float = 0.1
    penalty: float = 5.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("penalty", self.penalty, 0.0, math.inf, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        return losses.dpop_loss(scores.chosen, scores.rejected, beta=self.beta, penalty=self.penalty)
