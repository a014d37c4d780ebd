"""Losses of denoising errors against their formulas, on residual tensors where the paper has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mpmath import mp, mpf
from torch import Tensor

from pl_prefopt import losses
from pl_prefopt.objectives import DPO, DSPO, DenoisingSFT, DiffusionKTO, LinearDPO, MaPO, Mixture, Objective
from pl_prefopt.scores import PairScores

F64 = torch.float64
mp.dps = 40


def residuals(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prediction minus target: policy on winner and loser, reference on both; (B, C, h, w) float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(4, 5, 3, 2, 2, generator=g, dtype=F64).unbind(0)  # type: ignore[return-value]


def error(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def scores_of(policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> PairScores:
    """Scores as the image module makes them."""
    own, other = (torch.stack([error(v) for v in pair], 1) for pair in (policy, reference))
    products = torch.stack([(a * b).flatten(1).mean(1) for a, b in zip(policy, reference, strict=True)], 1)
    return PairScores(logratios=(other - own) / 2, errors=own, ref_errors=other, outputs={"error_products": products})


W, L, RW, RL = residuals()
S = scores_of((W, L), (RW, RL))
E = [error(x) for x in (W, L, RW, RL)]


def test_mapo_to_forty_digits() -> None:
    for w, low in ((0.3, 0.7), (1e-5, 2.0), (1.5, 1.5), (0.02, 0.0199), (0.0, 3.0)):

        def f(x: float) -> Any:
            return mpf(1) if x == 0 else mpf("0.5") * x / (mp.e ** (mpf("0.5") * x) - 1)

        expected = w + mpf("0.1") * mp.log(1 + mp.e ** (-1000 * (f(w) - f(low))))
        found = losses.mapo_loss(torch.tensor([w], dtype=F64), torch.tensor([low], dtype=F64))
        assert float(found) == pytest.approx(float(expected), rel=1e-8)


def test_mapo_pulls_the_winner_down_and_pushes_the_loser_up() -> None:
    w, low = (torch.full((3,), v, dtype=F64, requires_grad=True) for v in (0.5, 0.501))
    up, down = torch.autograd.grad(losses.mapo_loss(w, low).sum(), [w, low])
    assert (up > 0).all()
    assert (down < 0).all()
    assert torch.autograd.gradcheck(lambda a, b: losses.mapo_loss(a, b, steps=10), (w, low))
    huge = losses.mapo_loss(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4]))
    assert torch.isfinite(huge).all()


def test_kto_by_hand() -> None:
    gains = torch.tensor([0.2, -0.1], dtype=F64)
    found = losses.diffusion_kto_loss(
        gains, torch.tensor([True, False]), torch.tensor(0.05, dtype=F64), beta=10.0, weights=(2.0, 0.5)
    )
    # 2 (1 - sigma(1.5)), .5 (1 - sigma(1.5))
    miss = 1 - 1 / (1 + math.exp(-1.5))
    assert found.tolist() == pytest.approx([2 * miss, 0.5 * miss], rel=1e-12)


def test_kto_objective_shares_one_baseline() -> None:
    gains = torch.stack([E[2] - E[0], E[3] - E[1]], 1)
    z = max(0.0, float(gains.mean()))
    expected = (1 - torch.sigmoid(3 * (gains[:, 0] - z))) + 0.25 * (1 - torch.sigmoid(-3 * (gains[:, 1] - z)))
    torch.testing.assert_close(DiffusionKTO(3.0, undesirable_weight=0.25)(S), expected)
    torch.testing.assert_close(DiffusionKTO(3.0).rewards(S), 3 * gains)
    same = scores_of((W, L), (W, L))
    torch.testing.assert_close(DiffusionKTO(3.0)(same), torch.ones(5, dtype=F64))


def test_linear_dpo() -> None:
    w, low, rw, rl = (e.clone().requires_grad_() for e in E)
    found = losses.linear_dpo_loss(w, low, rw, rl, beta=2.0, eta=0.1)
    weight = [min(max(0.2 * 2 * float((a - b) - (c - d)) + 0.5, 0.1), 0.9) for a, b, c, d in zip(*E, strict=True)]
    assert min(weight) < max(weight)
    torch.testing.assert_close(found, torch.tensor(weight, dtype=F64) * (E[0] - E[1]))
    gradient, *rest = torch.autograd.grad(found.sum(), [w, rw, rl], allow_unused=True)
    assert gradient.tolist() == pytest.approx(weight)
    assert rest == [None, None]


def test_dspo_is_the_squared_norm_of_the_released_code() -> None:
    w, low = W.clone().requires_grad_(), L.clone().requires_grad_()
    beta = 0.7
    inside = -0.5 * beta * ((error(w) - error(low)) - (error(RW) - error(RL)))
    c = beta * (1 - torch.sigmoid(inside)).view(-1, 1, 1, 1)
    expected = error(w - c * (w - RW))
    found = DSPO(beta)(scores_of((w, low), (RW, RL)))
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(expected.sum(), [w, low]), torch.autograd.grad(found.sum(), [w, low]), strict=True
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(DSPO(beta)(scores_of((W, L), (W, L))), error(W))


def test_safeguard_keeps_the_winner_from_rising() -> None:
    """Along the guarded direction the winner's error falls at least mu times as fast as without the loser."""
    mu = 0.6
    for sign in (1.0, -1.0):
        loser = sign * (0.9 * W + 0.1 * L) * 3
        factor = losses.safeguard_factor(W, loser, mu=mu)
        along, own = float((W * loser).sum()), float(W.square().sum())
        expected = min(1.0, (1 - mu) * own / along) if along > 0 else 1.0
        assert float(factor) == pytest.approx(expected)
        step = W - factor * loser
        assert float((step * W).sum()) >= mu * own - 1e-9
    assert float(losses.safeguard_factor(W, W * 0.01, mu=mu)) == 1.0


def test_objectives_name_their_losses() -> None:
    torch.testing.assert_close(DenoisingSFT()(S), E[0])
    torch.testing.assert_close(MaPO(0.2, 0.7, 100)(S), losses.mapo_loss(E[0], E[1], beta=0.2, scale=0.7, steps=100))
    torch.testing.assert_close(LinearDPO(3.0, 0.2)(S), losses.linear_dpo_loss(*E, beta=3.0, eta=0.2))
    gap = MaPO().rewards(S).diff(dim=1).squeeze()
    assert torch.equal(gap < 0, E[0] < E[1])
    anchored = Mixture([DPO(50.0), DenoisingSFT()], [1.0, 0.5])
    torch.testing.assert_close(anchored(S), losses.diffusion_dpo_loss(*E, beta=50.0) + 0.5 * E[0])
    expected = -F.logsigmoid(-25.0 * ((E[0] - E[1]) - (E[2] - E[3]))) + 0.5 * E[0]
    torch.testing.assert_close(anchored(S), expected)


@pytest.mark.parametrize("objective", [DenoisingSFT(), MaPO(), DiffusionKTO(), LinearDPO(), DSPO()], ids=repr)
def test_missing_errors_are_named(objective: Objective) -> None:
    with pytest.raises(ValueError, match=r"needs scores\.(ref_)?(errors|outputs)"):
        objective(PairScores(logratios=torch.zeros(2, 2)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: losses.mapo_loss(E[0], E[1], scale=0), "scale must be"),
        (lambda: losses.linear_dpo_loss(*E, eta=0.5), "eta must lie"),
        (lambda: losses.safeguard_factor(W, L, mu=1.0), "mu must lie"),
        (lambda: losses.diffusion_kto_loss(E[0], E[0], torch.tensor(0.0)), "desirable must be bool"),
        (lambda: DiffusionKTO(desirable_weight=-1.0), "desirable_weight must lie"),
    ],
)
def test_refusals(call, said: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=said):
        call()
