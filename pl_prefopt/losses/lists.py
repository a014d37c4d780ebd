"""Losses of more than two samples under one condition.

Legend: K or N samples of a group, r = log-ratios (B, K), u = r / tau or beta r.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.utilities.checks import (
    choice,
    distributions,
    finite,
    list_mask,
    per_row,
    positive,
    probabilities,
    rows,
    same_shape,
    table,
)


def softmax_dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, mask: Tensor | None = None) -> Tensor:
    """S-DPO: l(-logsumexp_k beta (r_k - r_w)) = log(1 + sum_k exp(beta (r_k - r_w))) (Chen et al. 2024, 2406.09215).

    Args:
        chosen: (B,) log-ratio of the one winner.
        rejected: (B, K) log-ratios of its opponents, K >= 1; K = 1 is DPO.
        beta: > 0.
        mask: (B, K) bool, False at padding.
    """
    rows(chosen=chosen)
    table("rejected", rejected)
    if len(rejected) != len(chosen):
        raise ValueError(f"rejected must hold one row per chosen, {len(chosen)}, got shape {tuple(rejected.shape)}")
    positive("beta", beta)
    real = list_mask("mask", mask, rejected, 1)
    gaps = beta * (wide(rejected) - wide(chosen)[:, None])
    return softplus(gaps.masked_fill(~real, -math.inf).logsumexp(-1))


def plackett_luce_loss(scores: Tensor, relevance: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Plackett-Luce negative log-likelihood of the order by relevance, mean over the K - 1 positions.

    sort by relevance, best first; mean_{k < K} [-u_k + logsumexp(u_k, ..., u_K)] (ADPO's official variant, 2510.18913).
    Ties keep the order in which the items came.

    Args:
        scores: (B, K) u, K >= 2.
        relevance: (B, K), higher is better, finite.
        mask: (B, K) bool, False at padding; each list keeps n >= 2 items and is averaged over n - 1 positions.

    Returns:
        (B,) loss; ln(K!) / (K - 1) for equal scores.

    Raises:
        ValueError: shapes that differ, lists of one item, a relevance that is not finite.
    """
    table("scores", scores)
    same_shape("relevance", relevance, scores)
    _at_least_two("scores", scores)
    real = list_mask("mask", mask, scores, 2)
    finite("relevance", relevance[real])
    order = relevance.to(wide(scores).dtype).masked_fill(~real, -math.inf).argsort(dim=-1, descending=True, stable=True)
    ranked, real = wide(scores).masked_fill(~real, 0.0).gather(-1, order), real.gather(-1, order)
    later = torch.ones(*ranked.shape, ranked.shape[1], dtype=torch.bool, device=ranked.device).triu()
    rest = ranked[:, None, :].masked_fill(~(later & real[:, None, :]), -math.inf)
    rest = rest.masked_fill(~real[:, :, None], 0.0).logsumexp(-1)
    count = real.sum(-1)
    counted = real & (torch.arange(real.shape[1], device=real.device) < (count - 1)[:, None])
    return ((rest - ranked) * counted).sum(-1) / (count - 1)


def irpo_loss(
    logratios: Tensor,
    relevance: Tensor,
    ranks: Tensor,
    *,
    beta: float = 1.0,
    mask: Tensor | None = None,
    opponents: str = "sum",
    items: str = "sum",
) -> Tensor:
    """In-context ranking preference optimisation (Wu et al. 2025, 2504.15477).

    sum_i w_i l(-log sum_{j != i} exp(beta (r_j - r_i))), w_i = (2^rel_i - 1) / log2(1 + rank_i). The paper sums over
    opponents and items; the official code takes log-mean (opponents="mean") and the mean over items (items="mean").
    Items of relevance 0 only act as opponents.

    Args:
        logratios: (B, N), N >= 2.
        relevance: (B, N) graded, >= 0.
        ranks: (B, N) position in the list that the policy saw, from 1.
        beta: > 0.
        mask: (B, N) bool, False at padding; each list keeps at least two items.
        opponents: "sum" (paper) or "mean" (official code).
        items: "sum" (paper) or "mean" (official code).
    """
    table("logratios", logratios)
    positive("beta", beta)
    choice("opponents", opponents, ("sum", "mean"))
    choice("items", items, ("sum", "mean"))
    _at_least_two("logratios", logratios)
    real = list_mask("mask", mask, logratios, 2)
    weight = _irpo_weights(relevance, ranks, real, logratios)
    r = beta * wide(logratios).masked_fill(~real, 0.0)
    others = ~torch.eye(r.shape[1], dtype=torch.bool, device=r.device) & real[:, None, :]
    gaps = (r[:, None, :] - r[:, :, None]).masked_fill(~others, -math.inf)
    gaps = gaps.masked_fill(~real[:, :, None], 0.0).logsumexp(-1)
    count = real.sum(-1)
    if opponents == "mean":
        gaps = gaps - (count - 1).to(gaps.dtype).log()[:, None]
    total = (weight * softplus(gaps)).sum(-1)
    return total / count if items == "mean" else total


def _irpo_weights(relevance: Tensor, ranks: Tensor, real: Tensor, like: Tensor) -> Tensor:
    same_shape("relevance", relevance, like)
    same_shape("ranks", ranks, like)
    finite("relevance", relevance[real], least=0)
    finite("ranks", ranks[real], least=1)
    gain = torch.exp2(relevance.to(wide(like).dtype)) - 1
    discount = torch.log2(1 + ranks.to(wide(like).dtype).clamp(min=1))
    return (gain / discount).masked_fill(~real, 0.0)


def adpo_listwise_loss(logratios: Tensor, targets: Tensor, *, tau: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Anchored DPO on a group: -sum_i q_i log softmax(r / tau)_i (Wang 2025, 2510.18913).

    Args:
        logratios: (B, K) against the anchor, K >= 2.
        targets: (B, K) distribution q.
        tau: temperature, > 0; the optimum is anchor * q^tau, so a larger tau moves MORE.
        mask: (B, K) bool, False at padding.

    Returns:
        (B,) loss; ln K at r = 0 for uniform q.
    """
    table("logratios", logratios)
    table("targets", targets, logratios)
    positive("tau", tau)
    _at_least_two("logratios", logratios)
    real = list_mask("mask", mask, logratios, 2)
    q = targets.masked_fill(~real, 0.0)
    distributions("targets", q)
    logp = (wide(logratios) / tau).masked_fill(~real, -math.inf).log_softmax(-1)
    return -(wide(q) * logp.masked_fill(~real, 0.0)).sum(-1)


def adpo_pairwise_loss(
    chosen: Tensor, rejected: Tensor, *, preference_prob: Tensor | float, beta: float = 0.1
) -> Tensor:
    """Anchored DPO on a pair: q l(beta z) + (1 - q) l(-beta z), beta = 1/tau (2510.18913); q = 1 is DPO.

    Args:
        chosen: (B,) log-ratio against the anchor.
        rejected: (B,).
        preference_prob: q in [0, 1], probability that `chosen` is better; (B,) or one number.
        beta: > 0.
    """
    rows(chosen=chosen, rejected=rejected)
    positive("beta", beta)
    z = beta * (wide(chosen) - wide(rejected))
    q = per_row("preference_prob", preference_prob, z)
    probabilities("preference_prob", q)
    return q * softplus(-z) + (1 - q) * softplus(z)


def _at_least_two(name: str, value: Tensor) -> None:
    if value.shape[1] < 2:
        raise ValueError(f"{name} must hold lists of at least 2 items, got {tuple(value.shape)}")
