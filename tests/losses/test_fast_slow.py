"""OFS-DPO: values, who learns from which loss, the clamp, derivatives, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pl_prefopt import losses
from tests.losses.numerics import F64, L, W, check_derivatives, check_extremes, close, extremes

torch.set_num_threads(1)
Case = tuple[Callable[..., Tensor], int, list[int]]
CASES: dict[str, Case] = {
    "fast": (lambda *ratios: losses.fast_slow_loss(*ratios)[0], 4, [2, 3]),
    "slow": (lambda *ratios: losses.fast_slow_loss(*ratios)[1], 4, [0, 1]),
}  # fmt: skip
"""Name -> (loss, number of arguments, arguments behind a stop-gradient)."""


def test_fast_slow_by_hand() -> None:
    # z_F = 1.5, z_S = -1.5: fast l(.15) + l(.3)/2, slow l(-.15) - l(.3)/2
    fast, slow = losses.fast_slow_loss(W[:1], L[:1], L[:1], W[:1], beta=0.1, alpha=0.5)
    close(fast, 0.620957 + 0.554355 / 2)
    close(slow, 0.770957 - 0.554355 / 2)


def test_fast_slow_identities() -> None:
    fast, slow = losses.fast_slow_loss(W, L, L, W, beta=0.3, alpha=0.0)
    torch.testing.assert_close(fast, losses.dpo_loss(W, L, beta=0.3), atol=1e-12, rtol=0)
    torch.testing.assert_close(slow, losses.dpo_loss(L, W, beta=0.3), atol=1e-12, rtol=0)
    fast, slow = losses.fast_slow_loss(W, L, W, L, beta=0.3, alpha=0.2)
    base = losses.dpo_loss(W, L, beta=0.3)
    torch.testing.assert_close(fast - base, torch.full_like(base, 0.2 * math.log(2)), atol=1e-12, rtol=0)
    torch.testing.assert_close(base - slow, torch.full_like(base, 0.2 * math.log(2)), atol=1e-12, rtol=0)


def test_fast_and_slow_each_learn_from_their_own_loss_and_both_grow_their_margin() -> None:
    sides = [v.clone().requires_grad_() for v in (W, L, L, W)]
    fast, slow = losses.fast_slow_loss(*sides, beta=0.1, alpha=0.5)
    for loss, own, other in ((fast, sides[:2], sides[2:]), (slow, sides[2:], sides[:2])):
        gradients = torch.autograd.grad(loss.sum(), own + other, allow_unused=True)
        assert gradients[2] is None
        assert gradients[3] is None
        assert gradients[0] is not None
        assert (gradients[0] < 0).all()


def test_fast_slow_is_bounded_by_the_clamp() -> None:
    far = torch.tensor([1e4], dtype=F64, requires_grad=True)
    zero = torch.zeros(1, dtype=F64)
    fast, slow = losses.fast_slow_loss(far, zero, zero, far, beta=1.0, alpha=1.0, clamp=10.0)
    assert float(fast.detach()) < 1e-3
    assert 9.9 < float(slow.detach()) < 10.1
    (gradient,) = torch.autograd.grad(fast.sum(), far)
    assert float(gradient) == 0.0


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name: str) -> None:
    check_derivatives(*CASES[name])


@pytest.mark.parametrize("name", CASES)
@extremes
def test_finite_at_extremes(name: str, dtype: torch.dtype, extreme: float) -> None:
    loss, count, *_ = CASES[name]
    check_extremes(loss, count, dtype, extreme)
