"""Objectives on the policy's own token log-probabilities; no reference is computed."""

from __future__ import annotations

import math

from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import Objective, check_average, check_beta, policy_means, policy_sums
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import within


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

    def __init__(self, average: str = "mean") -> None:
        self.average = check_average(average)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        read = policy_means if self.average == "mean" else policy_sums
        return -read(scores, self)[:, 0]

    def rewards(self, scores: PairScores) -> Tensor:
        """Log-probability per token."""
        return policy_means(scores, self).detach()


class SimPO(Objective):
    """`simpo_loss`; reward = beta * log-probability per token.

    Args:
        beta: > 0.
        gamma: target margin in units of reward, >= 0.
    """

    needs = frozenset({"rejected", "logps", "lengths"})
    reads_logratios = False

    def __init__(self, beta: float = 2.0, gamma: float = 0.5) -> None:
        self.beta = check_beta(beta)
        within("gamma", gamma, 0.0, math.inf, open_high=True)
        self.gamma = gamma

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        means = policy_means(scores, self)
        return losses.simpo_loss(means[:, 0], means[:, 1], beta=self.beta, gamma=self.gamma)

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * log-probability per token."""
        return self.beta * policy_means(scores, self).detach()


class ORPO(Objective):
    """`orpo_loss`, likelihood and odds ratio together; reward = beta * log-probability per token.

    Args:
        beta: the paper's lambda, > 0.
    """

    needs = SimPO.needs
    reads_logratios = False

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = check_beta(beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        means = policy_means(scores, self)
        return losses.orpo_loss(means[:, 0], means[:, 1], beta=self.beta)

    def rewards(self, scores: PairScores) -> Tensor:
        """Beta * log-probability per token."""
        return self.beta * policy_means(scores, self).detach()
