"""Rules by which `PreferenceRounds` turns the scored candidates of a prompt into pairs.

Legend: N prompts, K candidates of a prompt, P pairs. Scores: higher is better; NaN: no such candidate.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pl_prefopt.utilities.checks import integer, within
from pl_prefopt.utilities.configurable import Configurable

__all__ = ["AllPairs", "BestWorst", "PairRule", "ThresholdGap", "TruthAgainstWorst"]


class PairRule(Configurable):
    """Turns scores into pairs. A chosen candidate always scores strictly higher than the rejected one."""

    limit: int | None = None
    """Greatest number of pairs per prompt; those of the widest gap stay, the first ones where gaps are equal."""

    @abstractmethod
    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """(N, K, K) bool: whether candidate [n, i] may be chosen over [n, j]; `gaps` [n, i, j] = s[n, i] - s[n, j]."""

    def pairs(self, scores: Tensor, truth: int | None = None) -> Tensor:
        """(P, 3) int64 rows (prompt, chosen, rejected), ascending.

        Args:
            scores: (N, K), NaN where a prompt has no such candidate.
            truth: the column that holds the ground truth instead of a sample, None where there is none.

        Raises:
            ValueError: scores of another shape, infinite scores, truth beyond the columns.
        """
        if scores.dim() != 2 or scores.isinf().any():
            raise ValueError(
                f"scores must be finite or NaN, of shape (N, K); got {tuple(scores.shape)} with "
                f"{int(scores.isinf().sum())} infinite ones"
            )
        if truth is not None and not 0 <= truth < scores.shape[1]:
            raise ValueError(f"truth must be a column of {tuple(scores.shape)} scores, got {truth}")
        scores = scores.double()
        gaps = scores[:, :, None] - scores[:, None, :]
        pairs = (self.allowed(scores, gaps, truth) & (gaps > 0)).nonzero()
        return pairs if self.limit is None else _widest(pairs, gaps, self.limit)


@dataclass
class AllPairs(PairRule):
    """Every pair whose scores differ by at least `gap`.

    Args:
        gap: >= 0, in units of the score; 0 asks for any difference.
        limit: greatest number of pairs per prompt, >= 1; None takes all.

    Raises:
        ValueError: an argument out of range.
    """

    gap: float = 0.0
    limit: int | None = None

    def __post_init__(self) -> None:
        within("gap", self.gap, 0.0, math.inf, open_high=True)
        integer("limit", self.limit, optional=True)

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """All pairs of at least the gap."""
        return gaps >= self.gap


@dataclass
class BestWorst(PairRule):
    """The best candidate against the worst, one pair per prompt; the first of equals.

    Args:
        gap: least difference, >= 0; 0 asks for any.

    Raises:
        ValueError: gap < 0.
    """

    limit = 1

    gap: float = 0.0

    def __post_init__(self) -> None:
        within("gap", self.gap, 0.0, math.inf, open_high=True)

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """All pairs of at least the gap; `limit` keeps the widest."""
        return gaps >= self.gap


@dataclass
class TruthAgainstWorst(PairRule):
    """The ground truth against the worst sample, one pair per prompt; no pair where the truth does not score higher.

    Args:
        gap: least difference, >= 0; 0 asks for any.

    Raises:
        ValueError: gap < 0; in `pairs`, no ground truth among the candidates.
    """

    limit = 1

    gap: float = 0.0

    def __post_init__(self) -> None:
        within("gap", self.gap, 0.0, math.inf, open_high=True)

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """The pairs whose chosen candidate is the truth."""
        if truth is None:
            raise ValueError("TruthAgainstWorst needs the ground truth as a candidate; set truth: true")
        chosen = torch.zeros_like(gaps, dtype=torch.bool)
        chosen[:, truth] = True
        return chosen & (gaps >= self.gap)


@dataclass
class ThresholdGap(PairRule):
    """DNO-Prct (Rosset et al. 2024, 2404.03715): the chosen one is good enough, and better by a margin.

    (y+, y-) is a pair where s(y+) >= threshold and s(y+) - s(y-) >= gap, or >= own_gap where y+ is the policy's own
    sample. The ground truth may be chosen but is never rejected. The paper's values are the defaults, on scores 0 to 6.

    Args:
        threshold: least score of the chosen one.
        gap: least difference where the ground truth is chosen, >= 0.
        own_gap: the same where a sample is chosen, >= 0; None: `gap`.
        limit: greatest number of pairs per prompt, >= 1; None takes all.

    Raises:
        ValueError: an argument out of range.
    """

    threshold: float = 5.0
    gap: float = 2.0
    own_gap: float | None = 1.0
    limit: int | None = None

    def __post_init__(self) -> None:
        within("gap", self.gap, 0.0, math.inf, open_high=True)
        if self.own_gap is not None:
            within("own_gap", self.own_gap, 0.0, math.inf, open_high=True)
        integer("limit", self.limit, optional=True)

    def allowed(self, scores: Tensor, gaps: Tensor, truth: int | None) -> Tensor:
        """Threshold on the chosen one, a gap for samples and one for the truth, which is never rejected."""
        least = torch.full((scores.shape[1], 1), self.gap if self.own_gap is None else self.own_gap, dtype=gaps.dtype)
        if truth is not None:
            least[truth] = self.gap
        allowed = (gaps >= least.to(gaps.device)) & (scores >= self.threshold)[:, :, None]
        if truth is not None:
            allowed[:, :, truth] = False
        return allowed


def _widest(pairs: Tensor, gaps: Tensor, limit: int) -> Tensor:
    """The `limit` pairs of the widest gap of each prompt, in ascending order of (prompt, chosen, rejected)."""
    width = gaps[pairs.unbind(1)]
    order = torch.sort(width, descending=True, stable=True).indices
    order = order[torch.sort(pairs[order, 0], stable=True).indices]
    prompt = pairs[order, 0]
    first = torch.searchsorted(prompt, prompt)
    widest = order[torch.arange(len(order), device=order.device) - first < limit]
    return pairs[widest.sort().values]
