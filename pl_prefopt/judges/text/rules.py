"""Judges of texts by rules: patterns, lengths, repeated phrases, sums of other judges."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.judges.base import Judge, judged
from pl_prefopt.utilities.checks import choice, integer, positive

UNITS = ("words", "characters")


@dataclass
class RegexJudge(Judge):
    """Sum of the rewards of the patterns that a text matches.

    Args:
        rewards: regular expression -> reward in R.
        each: True counts every match of a pattern, False only whether there is one.
        ignore_case: match letters of either case.

    Raises:
        ValueError: no pattern, or one that cannot be compiled.
    """

    rewards: dict[str, float]
    each: bool = False
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("rewards must name at least one pattern, e.g. {'thank': 1.0}, got {}")
        self._patterns: list[re.Pattern[str]] = []
        for pattern in self.rewards:
            try:
                self._patterns.append(re.compile(pattern, re.IGNORECASE if self.ignore_case else 0))
            except re.error as error:
                raise ValueError(f"rewards must be regular expressions, got {pattern!r} ({error})") from None

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) sums."""
        counts = [[len(p.findall(text)) for p in self._patterns] for text in samples]
        matches = torch.tensor(counts, dtype=torch.float32).view(len(samples), len(self._patterns))
        if not self.each:
            matches = matches.clamp(max=1)
        return matches @ torch.tensor(list(self.rewards.values()), dtype=torch.float32)


@dataclass
class LengthJudge(Judge):
    """1 - beta * |n - target| / target, n = the length of the text; 1 at the target (the form of 2506.13351).

    Args:
        target: length that is best, >= 1.
        beta: slope, > 0.
        unit: "words" or "characters".

    Raises:
        ValueError: an argument out of range.
    """

    target: int
    beta: float = 1.0
    unit: str = "words"

    def __post_init__(self) -> None:
        integer("target", self.target)
        positive("beta", self.beta)
        choice("unit", self.unit, UNITS)

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) at most 1."""
        lengths = torch.tensor([len(s.split() if self.unit == "words" else s) for s in samples])
        return 1 - self.beta * (lengths - self.target).abs() / self.target


@dataclass
class NoRepeats(Judge):
    """Another judge's score, but a fixed one for texts that repeat an n-gram of words (DNO-Prct, 2404.03715).

    Args:
        judge: scores all other texts.
        n: words of the phrase, >= 1.
        times: number of occurrences from which a text counts as repetitive, >= 2.
        score_of_repeats: score of a repetitive text, usually the lowest of the judge.

    Raises:
        ValueError: an argument out of range.
    """

    judge: Judge
    n: int = 4
    times: int = 3
    score_of_repeats: float = 0.0

    def __post_init__(self) -> None:
        integer("n", self.n)
        integer("times", self.times, least=2)

    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) the judge's scores, replaced where a phrase is repeated."""
        repetitive = torch.tensor([self.repeats(s) >= self.times for s in samples])
        return judged(self.judge, conditions, samples).masked_fill(repetitive, self.score_of_repeats)

    def repeats(self, text: str) -> int:
        """Occurrences of the most frequent n-gram of a text, 0 where it is shorter."""
        words = text.split()
        return max(Counter(zip(*(words[i:] for i in range(self.n)), strict=False)).values(), default=0)


@dataclass
class WeightedSum(Judge):
    """sum_i weight_i * judge_i, for samples of any modality.

    Args:
        judges: at least one.
        weights: one each, in R; None: all 1.

    Raises:
        ValueError: no judge, or another number of weights.
    """

    judges: list[Judge]
    weights: list[float] | None = None

    def __post_init__(self) -> None:
        if not self.judges:
            raise ValueError("judges must hold at least one judge, got []")
        if self.weights is not None and len(self.weights) != len(self.judges):
            raise ValueError(f"weights must be {len(self.judges)} numbers, one per judge, got {self.weights}")

    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        """(B,) weighted sums."""
        weights = self.weights or [1.0] * len(self.judges)
        scores = [w * judged(j, conditions, samples) for w, j in zip(weights, self.judges, strict=True)]
        return torch.stack(scores).sum(0)
