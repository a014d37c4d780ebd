"""Losses of more than two samples under one condition.

Legend: K or N samples of a group, r = log-ratios (B, K), u = r / tau or beta r.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt.losses._checks import choice, distributions, list_mask, positive, rows, table
from pl_prefopt.losses._math import softplus, wide


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
    positive("beta", beta)
    real = list_mask("mask", mask, rejected, 1)
    gaps = beta * (wide(rejected) - wide(chosen)[:, None])
    return softplus(gaps.masked_fill(~real, float("-inf")).logsumexp(-1))


def plackett_luce_loss(scores: Tensor, relevance: Tensor) -> Tensor:
    """Plackett-Luce negative log-likelihood of the order by relevance, mean over the K - 1 positions.

    sort by relevance, best first; mean_{k < K} [-u_k + logsumexp(u_k, ..., u_K)] (ADPO's official variant, 2510.18913).
    Ties keep the order in which the items came.

    Args:
        scores: (B, K) u, K >= 2.
        relevance: (B, K), higher is better.
    """
    table("scores", scores)
    if relevance.shape != scores.shape:
        raise ValueError(f"relevance must be {tuple(scores.shape)}, got shape {tuple(relevance.shape)}")
    _at_least_two("scores", scores)
    order = relevance.argsort(dim=-1, descending=True, stable=True)
    ranked = wide(scores).gather(-1, order)
    rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    return (rest - ranked)[:, :-1].mean(-1)


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
        ranks: (B, N) position in the list that was shown, from 1.
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
    gaps = (r[:, None, :] - r[:, :, None]).masked_fill(~others, float("-inf"))
    gaps = gaps.masked_fill(~real[:, :, None], 0.0).logsumexp(-1)
    count = real.sum(-1)
    if opponents == "mean":
        gaps = gaps - (count - 1).to(gaps.dtype).log()[:, None]
    total = (weight * softplus(gaps)).sum(-1)
    return total / count if items == "mean" else total


def _irpo_weights(relevance: Tensor, ranks: Tensor, real: Tensor, like: Tensor) -> Tensor:
    for name, value in (("relevance", relevance), ("ranks", ranks)):
        if value.shape != like.shape:
            raise ValueError(f"{name} must be {tuple(like.shape)}, got shape {tuple(value.shape)}")
    if bool((relevance[real] < 0).any()):
        raise ValueError(f"relevance must be >= 0, got {float(relevance[real].min())}")
    if bool((ranks[real] < 1).any()):
        raise ValueError(f"ranks must be >= 1, got {float(ranks[real].min())}")
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
    q = wide(targets).masked_fill(~real, 0.0)
    distributions("targets", q)
    logp = (wide(logratios) / tau).masked_fill(~real, float("-inf")).log_softmax(-1)
    return -(q * logp.masked_fill(~real, 0.0)).sum(-1)


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
    q = torch.as_tensor(preference_prob, dtype=z.dtype, device=z.device)
    if q.shape not in ((), z.shape) or not bool(((q >= 0) & (q <= 1)).all()):
        raise ValueError(f"preference_prob must lie in [0, 1] with shape {tuple(z.shape)}, got {preference_prob}")
    return -(q * logsigmoid(z) + (1 - q) * logsigmoid(-z))


def _at_least_two(name: str, value: Tensor) -> None:
    if value.shape[1] < 2:
        raise ValueError(f"{name} must hold lists of at least 2 items, got {tuple(value.shape)}")
