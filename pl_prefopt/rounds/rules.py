"""Which of a prompt's scored candidates become pairs: the rules of `PreferenceRounds`.

Legend: N prompts, K candidates per prompt, P pairs. Scores: higher is better; NaN: no such candidate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pl_prefopt.utilities.checks import integer, not_negative
from pl_prefopt.utilities.configurable import Configurable

__all__ = ["AllPairs", "BestWorst", "PairRule", "ThresholdGap", "TruthAgainstWorst"]


class PairRule(Configurable, ABC):
    """Turns scores into pairs. A chosen candidate always scores strictly higher than the rejected one."""

    limit: int | None = None
    """Most pairs per prompt; those of the widest gaps are kept, of equal gaps the first ones. None: all."""

    @abstractmethod
    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """Return which candidates [n, i] may be chosen over which [n, j], (N, K, K) bool.

        Args:
            scores: (N, K) s, NaN where there is no candidate.
            gaps: (N, K, K), s[n, i] - s[n, j].
            truth: column of the ground truth, None without one.
        """

    def pairs(self, scores: Tensor, truth: int | None = None) -> Tensor:
        """Return the pairs as rows (prompt, chosen, rejected), (P, 3) int64, ascending.

        Args:
            scores: (N, K), NaN where a prompt has no such candidate.
            truth: the column that holds the ground truth instead of a sample, None without one.

        Raises:
            ValueError: scores of another shape, infinite scores, truth that is no column.
        """
        if scores.dim() != 2 or scores.isinf().any():
            raise ValueError(
                f"scores must be finite or NaN, of shape (N, K), got {tuple(scores.shape)} with "
                f"{int(scores.isinf().sum())} infinite values"
            )
        if truth is not None and not 0 <= truth < scores.shape[1]:
            raise ValueError(f"truth must be a column of {tuple(scores.shape)} scores, got {truth}")
        scores = scores.double()
        gaps = scores[:, :, None] - scores[:, None, :]
        pairs = (self.allowed(scores, gaps, truth) & (gaps > 0)).nonzero()
        return pairs if self.limit is None else _widest(pairs, gaps, self.limit)


class AllPairs(PairRule):
    """Every pair whose scores differ by at least `gap`.

    Args:
        gap: >= 0, in units of the score; 0: any difference.
        limit: most pairs per prompt, >= 1; None: all.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, gap: float = 0.0, limit: int | None = None) -> None:
        not_negative("gap", gap)
        integer("limit", limit, optional=True)
        self.gap, self.limit = gap, limit

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """All pairs of at least the gap."""
        return gaps >= self.gap


class BestWorst(PairRule):
    """The best candidate against the worst, one pair per prompt; the first ones of equal scores.

    Args:
        gap: smallest difference, >= 0; 0: any.

    Raises:
        ValueError: gap < 0.
    """

    limit = 1

    def __init__(self, gap: float = 0.0) -> None:
        not_negative("gap", gap)
        self.gap = gap

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """All pairs of at least the gap; `limit` keeps the widest."""
        return gaps >= self.gap


class TruthAgainstWorst(PairRule):
    """The ground truth against the worst sample, one pair per prompt; none where the truth does not score higher.

    Args:
        gap: smallest difference, >= 0; 0: any.

    Raises:
        ValueError: gap < 0; in `pairs`, no ground truth among the candidates.
    """

    limit = 1

    def __init__(self, gap: float = 0.0) -> None:
        not_negative("gap", gap)
        self.gap = gap

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """Pairs whose chosen sample is the truth."""
        if truth is None:
            raise ValueError("truth must be among the candidates of this rule, got none. Please set truth: true")
        chosen = torch.zeros_like(gaps, dtype=torch.bool)
        chosen[:, truth] = True
        return chosen & (gaps >= self.gap)


class ThresholdGap(PairRule):
    """DNO-Prct (Rosset et al. 2024, 2404.03715): the chosen sample is good enough, and better by a margin.

    (y+, y-) is a pair where s(y+) >= threshold and s(y+) - s(y-) >= gap, or >= own_gap where y+ is the policy's own
    sample. The ground truth may be chosen but is never rejected. The paper's values are the defaults, on scores 0 to 6.

    Args:
        threshold: lowest score of the chosen sample.
        gap: smallest difference where the ground truth is chosen, >= 0.
        own_gap: smallest difference where a sample of the policy is chosen, >= 0; None: `gap`.
        limit: most pairs per prompt, >= 1; None: all.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, threshold: float = 5.0, gap: float = 2.0, own_gap: float | None = 1.0, limit: int | None = None
    ) -> None:
        not_negative("gap", gap)
        not_negative("own_gap", gap if own_gap is None else own_gap)
        integer("limit", limit, optional=True)
        self.threshold, self.gap, self.own_gap, self.limit = threshold, gap, own_gap, limit

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """Pairs above the threshold, by the gap of their origin, without those that reject the truth."""
        own_gap = self.gap if self.own_gap is None else self.own_gap
        smallest = torch.full((scores.shape[1], 1), own_gap, dtype=gaps.dtype, device=gaps.device)
        if truth is not None:
            smallest[truth] = self.gap
        allowed = (gaps >= smallest) & (scores >= self.threshold)[:, :, None]
        if truth is not None:
            allowed[:, :, truth] = False
        return allowed


def _widest(pairs: Tensor, gaps: Tensor, limit: int) -> Tensor:
    """The `limit` pairs of the widest gap of each prompt, in ascending order of (prompt, chosen, rejected)."""
    order = torch.sort(gaps[pairs.unbind(1)], descending=True, stable=True).indices
    # the stable sort by prompt keeps the order by gap within each prompt
    order = order[torch.sort(pairs[order, 0], stable=True).indices]
    prompts = pairs[order, 0]
    rank_in_prompt = torch.arange(len(order), device=order.device) - torch.searchsorted(prompts, prompts)
    return pairs[order[rank_in_prompt < limit].sort().values]
