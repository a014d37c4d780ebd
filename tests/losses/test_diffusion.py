"""Losses of denoising errors against their formulas, on residual tensors where the paper has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from pl_prefopt import losses
from tests.losses.numerics import F64, check_derivatives, check_extremes, close, extremes
from tests.losses.residuals import ERRORS, L, W
from tests.oracles import formulas

torch.set_num_threads(1)
mp.dps = 40
Case = tuple[Callable[..., Tensor], int, list[int]]
CASES: dict[str, Case] = {
    "ddo": (partial(losses.ddo_loss, beta=0.1), 2, []),
    "diffusion": (partial(losses.diffusion_dpo_loss, beta=3.0), 4, []),
}  # fmt: skip
"""Name -> (loss, number of arguments, arguments behind a stop-gradient)."""


def test_diffusion_by_hand() -> None:
    policy, reference = torch.tensor([0.3, 0.9], dtype=F64), torch.tensor([0.5, 0.4], dtype=F64)
    close(losses.denoising_logratios(policy, reference), 0.1, -0.25, atol=1e-12)
    # -10/2 [(.3 - .5) - (.4 - .4)] = 1
    errors = [torch.tensor([v], dtype=F64) for v in (0.3, 0.5, 0.4, 0.4)]
    close(losses.diffusion_dpo_loss(*errors, beta=10.0), math.log(1 + math.exp(-1)), atol=1e-12)


def test_diffusion_identities() -> None:
    g = torch.Generator().manual_seed(0)
    w, low, rw, rl = (v.requires_grad_() for v in torch.rand(4, 6, generator=g, dtype=F64))
    loss = losses.diffusion_dpo_loss(w, low, rw, rl, beta=200.0)
    # the released code's form
    inside = -0.5 * 200.0 * ((w - low) - (rw - rl))
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(inside), atol=1e-12, rtol=0)
    up, down = torch.autograd.grad(loss.sum(), [w, low])
    assert (up > 0).all()
    assert (down < 0).all()
    same = losses.diffusion_dpo_loss(w, low, w, low)
    torch.testing.assert_close(same, torch.full_like(same, math.log(2)), atol=1e-12, rtol=0)


def test_ddo_by_hand() -> None:
    real, fake = torch.tensor([1.0], dtype=F64), torch.tensor([-0.5], dtype=F64)
    close(losses.ddo_loss(real, fake, alpha=2.0, beta=0.1), 0.644397 + 2 * 0.668460)
    close(
        losses.ddo_loss(real, fake, alpha=2.0, beta=0.1),
        float(formulas.ddo(1, mpf(-0.5), alpha=2.0, beta=0.1)),
        atol=1e-12,
    )


def test_mapo_to_forty_digits() -> None:
    for w, low in ((0.3, 0.7), (1e-5, 2.0), (1.5, 1.5), (0.02, 0.0199), (0.0, 3.0)):

        def f(x: float) -> Any:
            return mpf(1) if x == 0 else mpf("0.5") * x / (mp.e ** (mpf("0.5") * x) - 1)

        expected = w + mpf("0.1") * mp.log(1 + mp.e ** (-1000 * (f(w) - f(low))))
        result = losses.mapo_loss(torch.tensor([w], dtype=F64), torch.tensor([low], dtype=F64))
        assert float(result) == pytest.approx(float(expected), rel=1e-8)


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
    result = losses.diffusion_kto_loss(
        gains, torch.tensor([True, False]), torch.tensor(0.05, dtype=F64), beta=10.0, weights=(2.0, 0.5)
    )
    # 2 (1 - sigma(1.5)), .5 (1 - sigma(1.5))
    miss = 1 - 1 / (1 + math.exp(-1.5))
    assert result.tolist() == pytest.approx([2 * miss, 0.5 * miss], rel=1e-12)


def test_linear_dpo() -> None:
    w, low, rw, rl = (e.clone().requires_grad_() for e in ERRORS)
    result = losses.linear_dpo_loss(w, low, rw, rl, beta=2.0, eta=0.1)
    weight = [min(max(0.2 * 2 * float((a - b) - (c - d)) + 0.5, 0.1), 0.9) for a, b, c, d in zip(*ERRORS, strict=True)]
    assert min(weight) < max(weight)
    torch.testing.assert_close(result, torch.tensor(weight, dtype=F64) * (ERRORS[0] - ERRORS[1]))
    gradient, *rest = torch.autograd.grad(result.sum(), [w, rw, rl], allow_unused=True)
    assert gradient.tolist() == pytest.approx(weight)
    assert rest == [None, None]


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


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name: str) -> None:
    check_derivatives(*CASES[name])


@pytest.mark.parametrize("name", CASES)
@extremes
def test_finite_at_extremes(name: str, dtype: torch.dtype, extreme: float) -> None:
    loss, count, *_ = CASES[name]
    check_extremes(loss, count, dtype, extreme)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.mapo_loss(ERRORS[0], ERRORS[1], scale=0), "scale must be"),
        (lambda: losses.linear_dpo_loss(*ERRORS, eta=0.5), "eta must lie"),
        (lambda: losses.safeguard_factor(W, L, mu=1.0), "mu must lie"),
        (lambda: losses.diffusion_kto_loss(ERRORS[0], ERRORS[0], torch.tensor(0.0)), "desirable must be bool"),
    ],
)
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
