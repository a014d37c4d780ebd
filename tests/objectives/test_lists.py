"""Objectives on lists: columns, padding, and the target distributions of ADPO against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mpmath import erf, exp, mpf, sqrt

from pl_prefopt import losses
from pl_prefopt.objectives import ADPO, IRPO, PlackettLuce, SoftmaxDPO, list_targets
from tests.objectives.scores import R, W, scores
from tests.oracles.formulas import silverman

torch.set_num_threads(1)
REWARDS = [0.3, 2.0, -1.0, 0.9, 0.3]
PROB = torch.tensor([0.9, 0.5, 0.2])


def test_adpo_reads_soft_labels() -> None:
    want = losses.adpo_pairwise_loss(W, R, beta=2.0, preference_prob=PROB)
    torch.testing.assert_close(ADPO(0.5)(scores(preference_prob=PROB)), want)


def test_lists() -> None:
    relevance = torch.tensor([[3.0, 2, 0, 1], [1, 1, 0, 0], [2, 0, 0, 1]])
    ranks = torch.tensor([[4.0, 3, 2, 1]]).expand(3, 4)
    given = scores(4, relevance=relevance, ranks=ranks)
    r = given.logratios
    torch.testing.assert_close(
        IRPO(0.7, "mean", "mean")(given),
        losses.irpo_loss(r, relevance, ranks, beta=0.7, opponents="mean", items="mean"),
    )
    listed = scores(4, relevance=relevance)
    natural = torch.arange(1.0, 5.0).expand(3, 4)
    torch.testing.assert_close(IRPO()(listed), losses.irpo_loss(r, relevance, natural))
    torch.testing.assert_close(PlackettLuce(0.7)(listed), losses.plackett_luce_loss(0.7 * r, relevance))
    torch.testing.assert_close(SoftmaxDPO(0.7)(listed), losses.softmax_dpo_loss(r[:, 0], r[:, 1:], beta=0.7))
    q = torch.softmax(relevance / 0.4, -1)
    torch.testing.assert_close(ADPO(0.7, 0.4, "softmax")(listed), losses.adpo_listwise_loss(r, q, tau=0.7))
    torch.testing.assert_close(ADPO(0.7)(scores(4, targets=q)), losses.adpo_listwise_loss(r, q, tau=0.7))


def test_ragged_lists() -> None:
    relevance = torch.tensor([[3.0, 2, 1, 9], [1, 1, 0, 9], [2, 0, 1, 9]])
    mask = torch.tensor([[True, True, True, False]]).expand(3, 4)
    ragged = replace(scores(4, relevance=relevance), mask=mask)
    short = replace(ragged, logratios=ragged.logratios[:, :3], mask=None, columns={"relevance": relevance[:, :3]})
    for objective in (
        IRPO(),
        PlackettLuce(),
        SoftmaxDPO(),
        *(ADPO(targets=t) for t in ("zscore", "softmax", "hard", "kde")),
    ):
        torch.testing.assert_close(objective(ragged), objective(short), atol=1e-6, rtol=1e-6)


def targets(rewards: list[float], kind: str, beta_r: float = 0.5) -> list[float]:
    row = torch.tensor([rewards], dtype=torch.float64)
    return list_targets(row, torch.ones_like(row, dtype=torch.bool), kind=kind, beta_r=beta_r)[0].tolist()


def softmax(values: list[float], temperature: float) -> list[float]:
    total = sum(exp(mpf(v) / temperature) for v in values)
    return [float(exp(mpf(v) / temperature) / total) for v in values]


def test_softmax() -> None:
    assert targets(REWARDS, "softmax", 0.7) == pytest.approx(softmax(REWARDS, 0.7), abs=1e-12)


def test_zscore_uses_the_unbiased_deviation_and_ignores_scale_and_shift() -> None:
    mean = sum(REWARDS) / 5
    std = math.sqrt(sum((r - mean) ** 2 for r in REWARDS) / 4)
    want = softmax([(r - mean) / std for r in REWARDS], 0.5)
    assert targets(REWARDS, "zscore") == pytest.approx(want, abs=1e-7)
    assert targets([100 * r - 7 for r in REWARDS], "zscore") == pytest.approx(want, abs=1e-7)


def test_hard_puts_all_mass_on_the_best_and_ties_share() -> None:
    assert targets(REWARDS, "hard", 0.01) == [0, 1, 0, 0, 0]
    assert targets([2.0, -1.0, 2.0], "hard") == pytest.approx([0.5, 0, 0.5])


def test_kde_is_the_smoothed_rank() -> None:
    h = silverman(REWARDS)
    ranks = [sum((1 + erf((mpf(a) - b) / (h * sqrt(2)))) / 2 for b in REWARDS) / 5 for a in REWARDS]
    assert targets(REWARDS, "kde") == pytest.approx(softmax([float(r) for r in ranks], 0.5), abs=1e-10)


def test_kde_hardly_sees_how_far_an_outlier_lies() -> None:
    near, far = targets([0.0, 1.0, 2.0, 3.0, 10.0], "kde"), targets([0.0, 1.0, 2.0, 3.0, 1e6], "kde")
    assert near == pytest.approx(far, abs=0.05)
    outlier = targets([0.0, 1.0, 2.0, 3.0, 1e6], "zscore")
    assert outlier[:4] == pytest.approx([outlier[0]] * 4, rel=1e-3)
    assert far[3] > 1.5 * far[0]


@pytest.mark.parametrize("kind", ["softmax", "zscore", "hard", "kde"])
def test_equal_rewards_say_nothing(kind: str) -> None:
    assert targets([0.7] * 4, kind) == pytest.approx([0.25] * 4, abs=1e-9)


@pytest.mark.parametrize("kind", ["softmax", "zscore", "hard", "kde"])
def test_better_rewards_never_get_less(kind: str) -> None:
    q = targets([-3.0, -0.5, 0.0, 0.1, 4.0], kind)
    assert q == sorted(q)
    assert sum(q) == pytest.approx(1.0, abs=1e-12)
