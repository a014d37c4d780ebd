"""DDO against the binary cross-entropy of a discriminator that is made of two likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pl_prefopt.objectives import DDO
from pl_prefopt.scores import PairScores

REAL, FAKE = torch.tensor([0.3, -2.0, 50.0]), torch.tensor([-0.4, 1.5, 80.0])


def scores(real: Tensor = REAL, fake: Tensor = FAKE, **extra: Tensor) -> PairScores:
    return PairScores(logratios=torch.stack([real, fake], 1), outputs=extra)


def by_hand(alpha: float, beta: float) -> Tensor:
    """-log d(real) - alpha log(1 - d(fake)) with d = p^beta / (p^beta + ref^beta), in float64."""
    d_real = 1 / (1 + torch.exp(-beta * REAL.double()))
    d_fake = 1 / (1 + torch.exp(-beta * FAKE.double()))
    return -d_real.log() - alpha * (1 - d_fake).log()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.02), (4.0, 0.05), (0.0, 0.1)])
def test_it_is_the_discriminators_cross_entropy(alpha: float, beta: float) -> None:
    torch.testing.assert_close(DDO(alpha, beta)(scores()).double(), by_hand(alpha, beta), rtol=1e-5, atol=1e-6)


def test_at_the_start_it_is_one_plus_alpha_times_log_two() -> None:
    zero = torch.zeros(3)
    torch.testing.assert_close(DDO(3.0, 0.05)(scores(zero, zero)), torch.full((3,), 4 * math.log(2)))
    torch.testing.assert_close(
        DDO(3.0, 0.05, normalize=True)(scores(zero, zero)), torch.full((3,), 4 / 3 * math.log(2))
    )
    torch.testing.assert_close(DDO(0.5, normalize=True)(scores(zero, zero)), torch.full((3,), 1.5 * math.log(2)))


def test_real_samples_are_pulled_and_generated_ones_pushed_each_by_its_own_term() -> None:
    ratios = torch.stack([REAL, FAKE], 1).requires_grad_()
    DDO(4.0, 0.05)(PairScores(logratios=ratios)).sum().backward()
    expected = torch.stack([-0.05 * torch.sigmoid(-0.05 * REAL), 4 * 0.05 * torch.sigmoid(0.05 * FAKE)], 1)
    assert ratios.grad is not None
    torch.testing.assert_close(ratios.grad, expected)


def test_rows_without_caption_have_their_own_alpha() -> None:
    dropped = torch.tensor([False, True, False])
    loss = DDO(4.0, 0.05, alpha_empty=0.0)(scores(text_drop=dropped))
    expected = torch.where(dropped, by_hand(0.0, 0.05), by_hand(4.0, 0.05)).float()
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match=r"DDO needs scores.outputs\['text_drop'\]"):
        DDO(4.0, 0.05, alpha_empty=0.0)(scores())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alpha": -1.0}, "alpha must lie"),
        ({"beta": 0.0}, "beta must be"),
        ({"alpha_empty": -0.1}, "alpha_empty must lie"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DDO(**options)  # type: ignore[arg-type]
