"""Pair rules, by hand and against explicit loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pl_prefopt.rounds import AllPairs, BestWorst, PairRule, ThresholdGap, TruthAgainstWorst
from pl_prefopt.utilities.configurable import from_config, to_config

NAN = math.nan
SCORES = torch.tensor([[5.0, 3.0, 6.0, 6.0], [4.0, 1.0, 0.0, 4.5], [2.0, 2.0, 2.0, 2.0], [5.0, NAN, 4.0, NAN]])


def triples(rule: PairRule, truth: int | None = None, scores: Tensor = SCORES) -> list[tuple[int, ...]]:
    return [tuple(row) for row in rule.pairs(scores, truth).tolist()]


def test_best_against_worst() -> None:
    assert triples(BestWorst()) == [(0, 2, 1), (1, 3, 2), (3, 0, 2)]
    assert triples(BestWorst(gap=3.0)) == [(0, 2, 1), (1, 3, 2)]


def test_all_pairs_of_a_gap() -> None:
    assert triples(AllPairs(gap=2.0)) == [(0, 0, 1), (0, 2, 1), (0, 3, 1), (1, 0, 1), (1, 0, 2), (1, 3, 1), (1, 3, 2)]
    assert triples(AllPairs(gap=2.0, limit=2)) == [(0, 2, 1), (0, 3, 1), (1, 0, 2), (1, 3, 2)]
    assert (3, 0, 2) in triples(AllPairs())


def test_truth_against_the_worst_sample() -> None:
    assert triples(TruthAgainstWorst(), truth=0) == [(0, 0, 1), (1, 0, 2), (3, 0, 2)]
    assert triples(TruthAgainstWorst(), truth=3) == [(0, 3, 1), (1, 3, 2)]
    with pytest.raises(ValueError, match="set truth: true"):
        TruthAgainstWorst().pairs(SCORES)


def test_dno_takes_good_enough_ones_by_a_gap_that_depends_on_who_made_them() -> None:
    assert triples(ThresholdGap()) == [(0, 0, 1), (0, 2, 0), (0, 2, 1), (0, 3, 0), (0, 3, 1), (3, 0, 2)]
    assert triples(ThresholdGap(), truth=2) == [(0, 0, 1), (0, 2, 1), (0, 3, 0), (0, 3, 1)]
    assert triples(ThresholdGap(threshold=6.5)) == []
    assert triples(ThresholdGap(own_gap=None)) == [(0, 0, 1), (0, 2, 1), (0, 3, 1)]


Good = Callable[[list[float], int, int, int], bool]
ORACLES: list[tuple[PairRule, Good]] = [
    (AllPairs(0.7), lambda s, i, j, t: s[i] - s[j] >= 0.7),
    (BestWorst(0.5), lambda s, i, j, t: s[i] - s[j] >= 0.5),
    (TruthAgainstWorst(0.2), lambda s, i, j, t: i == t and s[i] - s[j] >= 0.2),
    (ThresholdGap(0.3, 1, 0.5), lambda s, i, j, t: s[i] >= 0.3 and s[i] - s[j] >= (1 if i == t else 0.5) and j != t),
    (ThresholdGap(-0.5, 0.1, None, limit=3), lambda s, i, j, t: s[i] >= -0.5 and s[i] - s[j] >= 0.1 and j != t),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "good"), ORACLES)
def test_rules_agree_with_loops(rule: PairRule, good: Good) -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 5, generator=g, dtype=torch.float64).mul(4).round().div(4)
    scores[torch.rand(60, 5, generator=g) < 0.1] = NAN
    expected = []
    for n, row in enumerate(scores.tolist()):
        found = [(n, i, j) for i in range(5) for j in range(5) if row[i] > row[j] and good(row, i, j, 4)]
        found = sorted(found, key=lambda p: -(row[p[1]] - row[p[2]]))[: rule.limit]
        expected += sorted(found)
    assert triples(rule, 4, scores) == expected
    assert expected


def test_no_pair_is_an_empty_table() -> None:
    assert BestWorst().pairs(torch.full((3, 2), 1.0)).shape == (0, 3)
    assert BestWorst().pairs(torch.zeros(0, 2)).shape == (0, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestWorst(-1.0), "gap"),
        (lambda: AllPairs(limit=0), "limit"),
        (lambda: ThresholdGap(own_gap=-0.1), "own_gap"),
        (lambda: ThresholdGap(limit=0), "limit"),
        (lambda: TruthAgainstWorst(NAN), "gap"),
        (lambda: BestWorst().pairs(torch.zeros(3)), r"\(3,\)"),
        (lambda: BestWorst().pairs(torch.tensor([[1.0, math.inf]])), "1 infinite"),
        (lambda: BestWorst().pairs(torch.zeros(1, 2), truth=2), "truth"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rules_are_plain_values() -> None:
    for rule, _ in ORACLES:
        assert from_config(to_config(rule), PairRule) == rule
