"""Objectives on lists and on soft labels; the losses are in `pl_prefopt.losses.lists`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives.base import AVERAGES, Objective, data_column, reduce_by
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.checks import choice, finite, positive, within


@dataclass
class SoftmaxDPO(Objective):
    """`softmax_dpo_loss`: the first sample of a list against all others at once (S-DPO).

    Args:
        beta: > 0.
    """

    needs = Objective.needs | {"list"}

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        mask = None if scores.mask is None else scores.mask[:, 1:]
        return losses.softmax_dpo_loss(scores.chosen, scores.logratios[:, 1:], beta=self.beta, mask=mask)


@dataclass
class PlackettLuce(Objective):
    """`plackett_luce_loss` of beta * log-ratios in the order of the `relevance` column.

    Args:
        beta: > 0.
    """

    needs = Objective.needs | {"list", "relevance"}

    beta: float = 0.1

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        relevance = data_column(scores, "relevance", self)
        return losses.plackett_luce_loss(self.beta * scores.logratios, relevance, mask=scores.mask)


@dataclass
class IRPO(Objective):
    """`irpo_loss` with the `relevance` column; ranks come from a `ranks` column, else from the order of the list.

    Args:
        beta: > 0.
        opponents: "sum" (paper) or "mean" (official code).
        items: "sum" (paper) or "mean" (official code).
        average: token reduction of an item's log-probability, "mean" (official code) or "sum".
    """

    needs = Objective.needs | {"list", "relevance"}

    beta: float = 1.0
    opponents: str = "sum"
    items: str = "sum"
    average: str = "mean"

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        for name in ("opponents", "items", "average"):
            choice(name, getattr(self, name), AVERAGES)

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
            r, data_column(scores, "relevance", self), ranks,
            beta=self.beta, mask=scores.mask, opponents=self.opponents, items=self.items,
        )  # fmt: skip


@dataclass
class ADPO(Objective):
    """Anchored DPO (2510.18913): pairs by `adpo_pairwise_loss`, longer lists by `adpo_listwise_loss`.

    The anchor is the module's reference: fixed, moving (`ReferenceSync`), or the policy of the round
    (`PreferenceRounds`). Targets of a list come from a `targets` column, else from the `relevance` column (rewards):
    softmax: softmax(R / beta_r); zscore: softmax of (R - mean)/(std + 1e-8) / beta_r with the unbiased std; hard: all
    mass on the best, ties share; kde: softmax of F(R) / beta_r, F the distribution function of a Gaussian kernel
    density over the list with Silverman's bandwidth 0.9 min(std, IQR/1.34) K^(-1/5). Kernel and bandwidth are ours,
    since the paper's are not known.

    Args:
        tau: temperature, > 0; beta = 1 / tau on pairs. Published defaults vary between .5 and 1.
        beta_r: temperature of the targets, > 0.
        targets: softmax, zscore, hard or kde.
        label: q of a pair without a `preference_prob` column, in [0, 1].
    """

    needs = Objective.needs | {"list"}

    tau: float = 0.8
    beta_r: float = 0.5
    targets: str = "zscore"
    label: float = 1.0

    def __post_init__(self) -> None:
        positive("tau", self.tau)
        positive("beta_r", self.beta_r)
        choice("targets", self.targets, TARGETS)
        within("label", self.label, 0.0, 1.0)
        self.beta = 1 / self.tau

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


def list_targets(rewards: Tensor, mask: Tensor, *, kind: str, beta_r: float) -> Tensor:
    """Target distributions over each list's real items, as `ADPO` describes them.

    Args:
        rewards: (B, K), higher is better, finite at real items.
        mask: (B, K) bool, False at padding.
        kind: softmax, zscore, hard or kde.
        beta_r: temperature, > 0; without effect on hard.

    Returns:
        (B, K) float64, 0 at padding, rows sum to 1.

    Raises:
        ValueError: an unknown kind, beta_r <= 0, rewards that are not finite.
    """
    choice("kind", kind, TARGETS)
    positive("beta_r", beta_r)
    finite("rewards", rewards[mask])
    values = TARGETS[kind](rewards.double().masked_fill(~mask, 0.0), mask)
    temperature = 1.0 if kind == "hard" else beta_r
    return (values / temperature).masked_fill(~mask, float("-inf")).softmax(-1)


def _moments(rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    count = mask.sum(-1, keepdim=True)
    mean = (rewards * mask).sum(-1, keepdim=True) / count
    variance = ((rewards - mean).square() * mask).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return mean, variance.sqrt()


def _zscore(rewards: Tensor, mask: Tensor) -> Tensor:
    mean, std = _moments(rewards, mask)
    return (rewards - mean) / (std + 1e-8)


def _hard(rewards: Tensor, mask: Tensor) -> Tensor:
    best = rewards.masked_fill(~mask, float("-inf")).amax(-1, keepdim=True)
    return torch.where(rewards == best, 0.0, float("-inf")).to(rewards.dtype)


def _kde(rewards: Tensor, mask: Tensor) -> Tensor:
    _, std = _moments(rewards, mask)
    quartiles = rewards.masked_fill(~mask, float("nan")).nanquantile(torch.tensor([0.25, 0.75]).to(rewards), dim=-1)
    robust = ((quartiles[1] - quartiles[0]) / 1.34)[:, None]
    # Half of a list may share one reward; its interquartile range is then 0 and only the deviation gives a bandwidth.
    width = torch.where(robust > 0, torch.minimum(std, robust), std).clamp(min=1e-8)
    width = 0.9 * width * mask.sum(-1, keepdim=True).double().pow(-0.2)
    steps = (rewards[:, :, None] - rewards[:, None, :]) / width[..., None]
    cdf = 0.5 * (1 + torch.erf(steps / math.sqrt(2)))
    return (cdf * mask[:, None, :]).sum(-1) / mask.sum(-1, keepdim=True)


TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": lambda rewards, mask: rewards,
    "zscore": _zscore,
    "hard": _hard,
    "kde": _kde,
}
