"""MODPO and PAMA: the column of margins, rewards, which samples are raised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pl_prefopt import losses
from pl_prefopt.objectives import MODPO, PAMA
from pl_prefopt.scores import PairScores
from tests.objectives.scores import R, W, scores

torch.set_num_threads(1)
MARGINS = torch.tensor([[[0.2], [-0.2]], [[-0.1], [0.4]], [[0.3], [0.1]]])


def test_modpo() -> None:
    given = scores(margins=MARGINS)
    want = losses.modpo_loss(W, R, MARGINS[:, 0], MARGINS[:, 1], weights=torch.tensor([0.25, 0.75]), beta=0.3)
    objective = MODPO([0.25, 0.75], beta=0.3)
    torch.testing.assert_close(objective(given), want)
    reward = objective.rewards(given)
    torch.testing.assert_close(torch.nn.functional.softplus(reward[:, 1] - reward[:, 0]), want)
    assert MODPO().weights == [0.5, 0.5]


def test_modpo_keeps_the_digits_of_its_weights() -> None:
    r, m = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.tensor([[[2.0], [1.0]]], dtype=torch.float64)
    given, objective = PairScores(logratios=r, columns={"margins": m}), MODPO([0.9, 0.1], beta=0.1)
    # R = (.1 - .2)/.9 and (-.1 - .1)/.9
    want = torch.tensor([[-1 / 9, -2 / 9]], dtype=torch.float64)
    torch.testing.assert_close(objective.rewards(given), want, atol=1e-15, rtol=0)
    loss = torch.tensor([math.log1p(math.exp(-1 / 9))], dtype=torch.float64)
    torch.testing.assert_close(objective(given), loss, atol=1e-15, rtol=0)


def test_only_samples_that_are_better_by_every_objective_are_raised() -> None:
    """In the first list two samples exceed both means; in the second the objectives disagree about every sample."""
    margins = torch.tensor([[[3.0, 2.5], [2.5, 3.0], [1.0, 1.0]], [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]])
    r = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(PAMA()(PairScores(logratios=r, columns={"margins": margins})).sum(), r)
    assert (gradient < 0).tolist() == [[True, True, False], [False, False, False]]
    scaled = PAMA()(PairScores(logratios=r, columns={"margins": margins * torch.tensor([1.0, 100.0])}))
    torch.testing.assert_close(scaled, PAMA()(PairScores(logratios=r, columns={"margins": margins})))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PAMA(clip=-1.0), r"clip must be a finite number > 0, got -1.0"),
        (lambda: PAMA(scale="token"), r"scale must be one of term, batch"),
        (lambda: PAMA()(PairScores(torch.zeros(1, 2))), r"PAMA needs the data column 'margins'"),
        (
            lambda: PAMA()(PairScores(torch.zeros(1, 1), columns={"margins": torch.zeros(1, 1, 2)})),
            r"list_mask: rows \[0\] hold fewer than 2 items",
        ),
    ],
)
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
