"""Judges of texts that are rules: patterns, lengths, repeated phrases, sums of other judges."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.judges.base import Judge, judged

UNITS = ("words", "characters")


class RegexJudge(Judge):
    """Sum of the rewards of the patterns that a text matches.

    Args:
        rewards: regular expression -> reward in R.
        each: True counts every match of a pattern, False only whether there is one.
        ignore_case: match letters of either case.

    Raises:
        ValueError: no pattern, or one that cannot be compiled.
    """

    def __init__(self, rewards: dict[str, float], each: bool = False, ignore_case: bool = False) -> None:
        if not rewards:
            raise ValueError("rewards must name at least one pattern, e.g. {'thank': 1.0}")
        self.rewards, self.each, self.ignore_case = rewards, each, ignore_case
        self._compiled = {_compiled(p, re.IGNORECASE if ignore_case else 0): r for p, r in rewards.items()}

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) sums."""
        return torch.tensor([sum(r * self._matches(p, s) for p, r in self._compiled.items()) for s in samples])

    def _matches(self, pattern: re.Pattern[str], text: str) -> float:
        found = sum(1 for _ in pattern.finditer(text)) if self.each else pattern.search(text) is not None
        return float(found)


class LengthJudge(Judge):
    """1 - beta * |n - target| / target, n = the length of the text; 1 at the target (the form of 2506.13351).

    Args:
        target: length that is best, >= 1.
        beta: slope, > 0.
        unit: "words" or "characters".

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, target: int, beta: float = 1.0, unit: str = "words") -> None:
        if target < 1 or not beta > 0:
            raise ValueError(f"target must be >= 1 and beta > 0, got {target} and {beta}")
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
        self.target, self.beta, self.unit = target, beta, unit

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) at most 1."""
        lengths = torch.tensor([len(s.split() if self.unit == "words" else s) for s in samples])
        return 1 - self.beta * (lengths - self.target).abs() / self.target


class NoRepeats(Judge):
    """Another judge's score, but a fixed one for texts that say an n-gram of words too often (DNO-Prct, 2404.03715).

    Args:
        judge: scores all other texts.
        n: words of the phrase, >= 1.
        times: occurrences from which on a text is bad, >= 2.
        score_of_repeats: its score, usually the lowest of the judge.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, judge: Judge, n: int = 4, times: int = 3, score_of_repeats: float = 0.0) -> None:
        if n < 1 or times < 2:
            raise ValueError(f"n must be >= 1 and times >= 2, got {n} and {times}")
        self.judge, self.n, self.times, self.score_of_repeats = judge, n, times, score_of_repeats

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) the judge's scores, replaced where a phrase is repeated."""
        bad = torch.tensor([self.repeats(s) >= self.times for s in samples])
        return judged(self.judge, conditions, samples).masked_fill(bad, self.score_of_repeats)

    def repeats(self, text: str) -> int:
        """Occurrences of the most frequent n-gram of a text, 0 where it is shorter."""
        words = text.split()
        return max(Counter(zip(*(words[i:] for i in range(self.n)), strict=False)).values(), default=0)


class WeightedSum(Judge):
    """sum_i weight_i * judge_i, for samples of any modality.

    Args:
        judges: at least one.
        weights: one each, in R; None: all 1.

    Raises:
        ValueError: no judge, or another number of weights.
    """

    def __init__(self, judges: list[Judge], weights: list[float] | None = None) -> None:
        if not judges or (weights is not None and len(weights) != len(judges)):
            raise ValueError(f"give at least one judge and as many weights, got {len(judges)} and {weights}")
        self.judges, self.weights = judges, weights

    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        """(B,) weighted sums."""
        weights = self.weights or [1.0] * len(self.judges)
        scores = [w * judged(j, conditions, samples) for w, j in zip(weights, self.judges, strict=True)]
        return torch.stack(scores).sum(0)


def _compiled(pattern: str, flags: int) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise ValueError(f"rewards: the pattern {pattern!r} is no regular expression ({error})") from None
