"""Objectives on the policy's own token log-probabilities; the losses are in `pl_prefopt.losses.reference_free`.

No reference is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import AVERAGES, Objective, policy_means, policy_sums
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, positive, within


@dataclass
class SFT(Objective):
    """Negative log-likelihood of the chosen sample alone; training reads neither the rejected one nor a reference.

    -log pi(y_w|x), as a mean over the tokens of each pair or as their sum; then the mean over pairs. So eight batches
    of one equal one batch of eight, unlike a mean over all tokens of a micro-batch (TRL). Reward: log-probability per
    token.

    Args:
        average: "mean" or "sum" over tokens.
    """

    needs = frozenset({"logps", "lengths"})
    reads_logratios = False

    average: str = "mean"

    def __post_init__(self) -> None:
        choice("average", self.average, AVERAGES)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        logps = policy_means(scores, self) if self.average == "mean" else policy_sums(scores, self)
        return -logps[:, 0]

    def rewards(self, scores: PairScores) -> Tensor:
        """Log-probability per token."""
        return policy_means(scores, self).detach()


@dataclass
class SimPO(Objective):
    """`simpo_loss`; reward = beta * log-probability per token.

    Args:
        beta: > 0.
        gamma: target margin in units of reward, >= 0.
    """

    needs = frozenset({"rejected", "logps", "lengths"})
    reads_logratios = False

    beta: float = 2.0
    gamma: float = 0.5

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        within("gamma", self.gamma, 0.0, math.inf, open_high=True)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        means = policy_means(scores, self)
        return losses.simpo_loss(means[:, 0], means[:, 1], beta=self.beta, gamma=self.gamma)

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * log-probability per token."""
        return self.beta * policy_means(scores, self).detach()


@dataclass
class ORPO(Objective):
    """`orpo_loss`, likelihood and odds ratio together; reward = beta * log-probability per token.

    Args:
        beta: the paper's lambda, > 0.
    """

    needs = SimPO.needs
    reads_logratios = False

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        means = policy_means(scores, self)
        return losses.orpo_loss(means[:, 0], means[:, 1], beta=self.beta)

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * log-probability per token."""
        return self.beta * policy_means(scores, self).detach()
