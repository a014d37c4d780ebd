"""Objectives on denoising errors: the released forms on residuals, and DDO as the cross-entropy of a discriminator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives import DDO, DPO, DSPO, DenoisingSFT, DiffusionKTO, LinearDPO, MaPO, Mixture, Objective
from pl_prefopt.scores import PairScores
from tests.losses.residuals import ERRORS, F64, RL, RW, SCORES, L, W, error, scores_of

torch.set_num_threads(1)
REAL, FAKE = torch.tensor([0.3, -2.0, 50.0]), torch.tensor([-0.4, 1.5, 80.0])


def test_kto_objective_shares_one_baseline() -> None:
    gains = torch.stack([ERRORS[2] - ERRORS[0], ERRORS[3] - ERRORS[1]], 1)
    z = max(0.0, float(gains.mean()))
    expected = (1 - torch.sigmoid(3 * (gains[:, 0] - z))) + 0.25 * (1 - torch.sigmoid(-3 * (gains[:, 1] - z)))
    torch.testing.assert_close(DiffusionKTO(3.0, undesirable_weight=0.25)(SCORES), expected)
    torch.testing.assert_close(DiffusionKTO(3.0).rewards(SCORES), 3 * gains)
    same = scores_of((W, L), (W, L))
    torch.testing.assert_close(DiffusionKTO(3.0)(same), torch.ones(5, dtype=F64))


def test_dspo_is_the_squared_norm_of_the_released_code() -> None:
    w, low = W.clone().requires_grad_(), L.clone().requires_grad_()
    beta = 0.7
    inside = -0.5 * beta * ((error(w) - error(low)) - (error(RW) - error(RL)))
    c = beta * (1 - torch.sigmoid(inside)).view(-1, 1, 1, 1)
    expected = error(w - c * (w - RW))
    result = DSPO(beta)(scores_of((w, low), (RW, RL)))
    torch.testing.assert_close(result, expected)
    for a, b in zip(
        torch.autograd.grad(expected.sum(), [w, low]), torch.autograd.grad(result.sum(), [w, low]), strict=True
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(DSPO(beta)(scores_of((W, L), (W, L))), error(W))


def test_objectives_name_their_losses() -> None:
    torch.testing.assert_close(DenoisingSFT()(SCORES), ERRORS[0])
    torch.testing.assert_close(
        MaPO(0.2, 0.7, 100)(SCORES), losses.mapo_loss(ERRORS[0], ERRORS[1], beta=0.2, scale=0.7, steps=100)
    )
    torch.testing.assert_close(LinearDPO(3.0, 0.2)(SCORES), losses.linear_dpo_loss(*ERRORS, beta=3.0, eta=0.2))
    gap = MaPO().rewards(SCORES).diff(dim=1).squeeze()
    assert torch.equal(gap < 0, ERRORS[0] < ERRORS[1])
    anchored = Mixture([DPO(50.0), DenoisingSFT()], [1.0, 0.5])
    torch.testing.assert_close(anchored(SCORES), losses.diffusion_dpo_loss(*ERRORS, beta=50.0) + 0.5 * ERRORS[0])
    expected = -F.logsigmoid(-25.0 * ((ERRORS[0] - ERRORS[1]) - (ERRORS[2] - ERRORS[3]))) + 0.5 * ERRORS[0]
    torch.testing.assert_close(anchored(SCORES), expected)


@pytest.mark.parametrize("objective", [DenoisingSFT(), MaPO(), DiffusionKTO(), LinearDPO(), DSPO()], ids=repr)
def test_missing_errors_are_named(objective: Objective) -> None:
    with pytest.raises(ValueError, match=r"needs scores\.(ref_)?(errors|outputs)"):
        objective(PairScores(logratios=torch.zeros(2, 2)))


def generated(real: Tensor = REAL, fake: Tensor = FAKE, **outputs: Tensor) -> PairScores:
    return PairScores(logratios=torch.stack([real, fake], 1), outputs=outputs)


def discriminator(alpha: float, beta: float) -> Tensor:
    """-log d(real) - alpha log(1 - d(fake)) with d = p^beta / (p^beta + ref^beta), in float64."""
    d_real = 1 / (1 + torch.exp(-beta * REAL.double()))
    d_fake = 1 / (1 + torch.exp(-beta * FAKE.double()))
    return -d_real.log() - alpha * (1 - d_fake).log()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.02), (4.0, 0.05), (0.0, 0.1)])
def test_ddo_is_the_discriminators_cross_entropy(alpha: float, beta: float) -> None:
    torch.testing.assert_close(DDO(alpha, beta)(generated()).double(), discriminator(alpha, beta), rtol=1e-5, atol=1e-6)


def test_ddo_at_the_start_is_one_plus_alpha_times_log_two() -> None:
    zero = torch.zeros(3)
    torch.testing.assert_close(DDO(3.0, 0.05)(generated(zero, zero)), torch.full((3,), 4 * math.log(2)))
    torch.testing.assert_close(
        DDO(3.0, 0.05, normalize=True)(generated(zero, zero)), torch.full((3,), 4 / 3 * math.log(2))
    )
    torch.testing.assert_close(DDO(0.5, normalize=True)(generated(zero, zero)), torch.full((3,), 1.5 * math.log(2)))


def test_real_samples_are_pulled_and_generated_ones_pushed_each_by_its_own_term() -> None:
    ratios = torch.stack([REAL, FAKE], 1).requires_grad_()
    DDO(4.0, 0.05)(PairScores(logratios=ratios)).sum().backward()
    expected = torch.stack([-0.05 * torch.sigmoid(-0.05 * REAL), 4 * 0.05 * torch.sigmoid(0.05 * FAKE)], 1)
    assert ratios.grad is not None
    torch.testing.assert_close(ratios.grad, expected)


def test_rows_without_caption_have_their_own_alpha() -> None:
    dropped = torch.tensor([False, True, False])
    loss = DDO(4.0, 0.05, alpha_empty=0.0)(generated(text_drop=dropped))
    expected = torch.where(dropped, discriminator(0.0, 0.05), discriminator(4.0, 0.05)).float()
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match=r"DDO needs scores.outputs\['text_drop'\]"):
        DDO(4.0, 0.05, alpha_empty=0.0)(generated())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionKTO(desirable_weight=-1.0), "desirable_weight must lie"),
        (lambda: DDO(alpha=-1.0), "alpha must lie"),
        (lambda: DDO(beta=0.0), "beta must be"),
        (lambda: DDO(alpha_empty=-0.1), "alpha_empty must lie"),
    ],
)
def test_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
