"""Objectives on lists, on soft labels, and on several rewards."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.losses._checks import choice, positive, within
from pl_prefopt.objectives.base import Objective, check_average, check_beta, column, reduce_by
from pl_prefopt.scores import PairScores


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
    """`plackett_luce_loss` of beta * log-ratios in the order of the `relevance` column; lists of one length.

    Args:
        beta: > 0.
    """

    needs = Objective.needs | {"list", "relevance"}

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = check_beta(beta)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        if scores.mask is not None and not bool(scores.mask.all()):
            raise ValueError("PlackettLuce needs lists of one length; this batch is ragged. IRPO takes ragged lists.")
        relevance = column(scores, "relevance", "PlackettLuce")
        return losses.plackett_luce_loss(self.beta * scores.logratios, relevance)


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

    @property
    def reduction(self) -> str:
        """As `average` says."""
        return self.average

    def reduce_tokens(self, values: Tensor, mask: Tensor) -> Tensor:
        """Sum or mean, as `average` says."""
        return reduce_by(self.average, values, mask)

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        r = scores.logratios
        ranks = scores.extra.get("ranks", torch.arange(1, r.shape[1] + 1, device=r.device, dtype=r.dtype).expand_as(r))
        return losses.irpo_loss(
            r, column(scores, "relevance", "IRPO"), ranks,
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
        if "targets" not in scores.extra and "relevance" not in scores.extra:
            q = scores.extra.get("preference_prob", self.label)
            return losses.adpo_pairwise_loss(scores.chosen, scores.rejected, preference_prob=q, beta=self.beta)
        q = scores.extra.get("targets")
        if q is None:
            mask = torch.ones_like(scores.logratios, dtype=torch.bool) if scores.mask is None else scores.mask
            q = list_targets(scores.extra["relevance"], mask, kind=self.targets, beta_r=self.beta_r)
        return losses.adpo_listwise_loss(scores.logratios, q.to(scores.logratios), tau=self.tau, mask=scores.mask)


def list_targets(rewards: Tensor, mask: Tensor, *, kind: str, beta_r: float) -> Tensor:
    """(B, K) target distributions over each list's real items, as `ADPO` describes them."""
    values = TARGETS[kind](rewards.double(), mask)
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
    spread = rewards.masked_fill(~mask, float("nan")).nanquantile(torch.tensor([0.25, 0.75]).to(rewards), dim=-1)
    robust = ((spread[1] - spread[0]) / 1.34)[:, None]
    width = torch.where(robust > 0, torch.minimum(std, robust), std).clamp(min=1e-8)
    width = 0.9 * width * mask.sum(-1, keepdim=True).double().pow(-0.2)
    steps = (rewards[:, :, None] - rewards[:, None, :]) / width[..., None]
    cdf = 0.5 * (1 + torch.erf(steps / math.sqrt(2)))
    return (cdf * mask[:, None, :]).sum(-1) / mask.sum(-1, keepdim=True)


TARGETS = {"softmax": lambda rewards, mask: rewards, "zscore": _zscore, "hard": _hard, "kde": _kde}


class MODPO(Objective):
    """`modpo_loss` with the `margins` column (B, K, M): rewards of the other objectives for each sample.

    Args:
        weights: (1 + M) numbers, not negative, sum 1; the first, > 0, belongs to the labels.
        beta: > 0.
    """

    needs: ClassVar[frozenset[str]] = Objective.needs | {"margins"}

    def __init__(self, weights: list[float], beta: float = 0.1) -> None:
        self.beta = check_beta(beta)
        losses.modpo_weights(weights, len(weights) - 1)
        self.weights = weights

    def __call__(self, scores: PairScores) -> Tensor:
        """(B,) loss."""
        margins = column(scores, "margins", "MODPO")
        return losses.modpo_loss(
            scores.chosen, scores.rejected, margins[:, 0], margins[:, 1],
            weights=torch.tensor(self.weights), beta=self.beta,
        )  # fmt: skip

    def rewards(self, scores: PairScores) -> Tensor:
        """R = (beta r - sum_i w_i m_i) / w_0, which the loss compares."""
        other = column(scores, "margins", "MODPO") @ torch.tensor(self.weights[1:]).to(scores.logratios)
        return ((self.beta * scores.logratios - other) / self.weights[0]).detach()
