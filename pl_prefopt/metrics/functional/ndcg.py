"""Quality of ranked lists. Legend: B lists of K items."""

from __future__ import annotations

import torch
from torch import Tensor

from pl_prefopt.utilities.checks import finite, integer, list_mask, same_shape, table


def ndcg(scores: Tensor, relevance: Tensor, *, mask: Tensor | None = None, k: int | None = None) -> Tensor:
    """Normalised discounted cumulative gain of the order by score, with graded relevance.

    DCG / IDCG, DCG = sum_i (2^rel_i - 1) d(rank_i), d(n) = 1 / log2(1 + n) for n <= k, else 0. Items of equal score
    share the mean of the discounts of their ranks, so the order in which items come never matters and equal scores
    give the value that a random order has on average.

    Args:
        scores: (B, K), higher is better.
        relevance: (B, K), >= 0.
        mask: (B, K) bool, False at padding.
        k: ranks that count, >= 1; None: all.

    Returns:
        (B,) float64 in [0, 1]; 0 for a list without a relevant item.

    Raises:
        ValueError: shapes that differ, scores or relevance that are not finite, k < 1.

    Example:
        >>> import torch
        >>> ndcg(torch.tensor([[0.3, 0.2, 0.1]]), torch.tensor([[0.0, 1.0, 0.0]]))
        tensor([0.6309], dtype=torch.float64)
    """
    table("scores", scores)
    same_shape("relevance", relevance, scores)
    real = list_mask("mask", mask, scores, 1)
    finite("scores", scores[real])
    finite("relevance", relevance[real], least=0)
    integer("k", k, optional=True)
    gain = (torch.exp2(relevance.double()) - 1).masked_fill(~real, 0.0)
    dcg, ideal = ((gain * _discounts(order, real, k)).sum(-1) for order in (scores.double(), relevance.double()))
    return torch.where(ideal > 0, dcg / ideal.clamp(min=torch.finfo(ideal.dtype).tiny), 0.0)


def _discounts(order: Tensor, real: Tensor, k: int | None) -> Tensor:
    """(B, K) float64 mean discount over the ranks that each item shares with its equals."""
    size = order.shape[1]
    ranks = torch.arange(1, size + 1, dtype=torch.float64, device=order.device)
    discount = torch.where(ranks <= (k or size), 1 / torch.log2(1 + ranks), 0.0)
    total = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    # Items of equal score occupy the ranks above + 1 to above + equal; the difference of cumulated discounts is the sum
    # of the discounts of these ranks.
    other = real[:, None, :] & real[:, :, None]
    above = ((order[:, None, :] > order[:, :, None]) & other).sum(-1)
    equal = ((order[:, None, :] == order[:, :, None]) & other).sum(-1)
    return (total[above + equal] - total[above]) / equal.clamp(min=1)
