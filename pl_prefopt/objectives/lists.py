"""Objectives on lists and on soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import Objective, check_average, check_beta, column, reduce_by
from pl_prefopt.objectives.targets import TARGETS, list_targets
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, positive, within


class SoftmaxDPO(Objective):
    """`softmax_dpo_loss`: the first sample of a list against all others at once (S-DPO).

    Args:
        beta: > 0.
    """

    needs = Objective.needs | {"list"}

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = check_beta(beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        mask = None if scores.mask is None else scores.mask[:, 1:]
        return losses.softmax_dpo_loss(scores.chosen, scores.logratios[:, 1:], beta=self.beta, mask=mask)


class PlackettLuce(Objective):
    """`plackett_luce_loss` of beta * log-ratios in the order of the `relevance` column.

    Args:
        beta: > 0.
    """

    needs = Objective.needs | {"list", "relevance"}

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = check_beta(beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        relevance = column(scores, "relevance", self)
        return losses.plackett_luce_loss(self.beta * scores.logratios, relevance, mask=scores.mask)


class IRPO(Objective):
    """`irpo_loss` with the `relevance` column; ranks come from a `ranks` column, else from the order of the list.

    Args:
        beta: > 0.
        opponents: "sum" (paper) or "mean" (official code).
        items: "sum" (paper) or "mean" (official code).
        average: token reduction of an item's log-probability, "mean" (official code) or "sum".
    """

    needs = Objective.needs | {"list", "relevance"}

    def __init__(self, beta: float = 1.0, opponents: str = "sum", items: str = "sum", average: str = "mean") -> None:
        self.beta = check_beta(beta)
        choice("opponents", opponents, ("sum", "mean"))
        choice("items", items, ("sum", "mean"))
        self.opponents = opponents
        self.items = items
        self.average = check_average(average)

    def reduce_tokens(self, values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum or mean, as `average` says."""
        return reduce_by(self.average, values, mask, weights)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        r = scores.logratios
        ranks = scores.columns.get(
            "ranks", torch.arange(1, r.shape[1] + 1, device=r.device, dtype=r.dtype).expand_as(r)
        )
        return losses.irpo_loss(
            r, column(scores, "relevance", self), ranks,
            beta=self.beta, mask=scores.mask, opponents=self.opponents, items=self.items,
        )  # fmt: skip


class ADPO(Objective):
    """Anchored DPO (2510.18913): pairs by `adpo_pairwise_loss`, longer lists by `adpo_listwise_loss`.

    The anchor is the module's reference: fixed, moving (`ReferenceSync`), or the policy of the round
    (`PreferenceRounds`). Targets of a list come from a `targets` column, else from the `relevance` column (rewards):
    softmax: softmax(R / beta_r); zscore: softmax of (R - mean)/(std + 1e-8) / beta_r with the unbiased std; hard: all
    mass on the best, ties share; kde: softmax of F(R) / beta_r, F the distribution function of a Gaussian kernel
    density over the list with Silverman's bandwidth 0.9 min(std, IQR/1.34) K^(-1/5). Kernel and bandwidth are ours:
    the paper's were not found.

    Args:
        tau: temperature, > 0; beta = 1 / tau on pairs. Published defaults vary between .5 and 1.
        beta_r: temperature of the targets, > 0.
        targets: softmax, zscore, hard or kde.
        label: q of a pair without a `preference_prob` column, in [0, 1].
    """

    needs = Objective.needs | {"list"}

    def __init__(self, tau: float = 0.8, beta_r: float = 0.5, targets: str = "zscore", label: float = 1.0) -> None:
        positive("tau", tau)
        positive("beta_r", beta_r)
        choice("targets", targets, tuple(TARGETS))
        within("label", label, 0.0, 1.0)
        self.tau = tau
        self.beta_r = beta_r
        self.targets = targets
        self.label = label
        self.beta = 1 / tau

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        if "targets" not in scores.columns and "relevance" not in scores.columns:
            q = scores.columns.get("preference_prob", self.label)
            return losses.adpo_pairwise_loss(scores.chosen, scores.rejected, preference_prob=q, beta=self.beta)
        q = scores.columns.get("targets")
        if q is None:
            mask = torch.ones_like(scores.logratios, dtype=torch.bool) if scores.mask is None else scores.mask
            q = list_targets(scores.columns["relevance"], mask, kind=self.targets, beta_r=self.beta_r)
        return losses.adpo_listwise_loss(scores.logratios, q.to(scores.logratios), tau=self.tau, mask=scores.mask)
