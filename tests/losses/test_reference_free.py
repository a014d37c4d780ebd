"""SimPO and ORPO: values, digits near both ends, derivatives, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from mpmath import mpf
from torch import Tensor

from pl_prefopt import losses
from tests.losses.numerics import F64, check_derivatives, check_extremes, close, extremes
from tests.oracles import formulas

torch.set_num_threads(1)
MEANS_W = torch.tensor([1 / 2, 1 / 3, 3 / 4], dtype=F64).log()
MEANS_L = torch.tensor([1 / 3, 1 / 2, 1 / 2], dtype=F64).log()
Case = tuple[Callable[..., Tensor], int, list[int]]
CASES: dict[str, Case] = {
    "simpo": (losses.simpo_loss, 2, []),
    "orpo": (lambda w, low: losses.orpo_loss(-w.abs() - 0.01, -low.abs() - 0.01), 2, []),
}  # fmt: skip
"""Name -> (loss, number of arguments, arguments behind a stop-gradient)."""


def test_simpo_by_hand() -> None:
    w, low = torch.tensor([-1.0, -2.0, -0.5], dtype=F64), torch.tensor([-1.5, -1.0, -2.0], dtype=F64)
    # 2 * .5 - .5 = .5, -2 - .5 = -2.5, 3 - .5 = 2.5
    close(losses.simpo_loss(w, low, beta=2.0, gamma=0.5), 0.474077, 2.578890, 0.078890)


def test_orpo_by_hand() -> None:
    # odds 1 : 1/2, 1/2 : 1, 3 : 1, so l = ln 3/2, ln 3, ln 4/3; likelihood terms ln 2, ln 3, ln 4/3
    want = [math.log(2) + 0.1 * math.log(1.5), 1.1 * math.log(3), 1.1 * math.log(4 / 3)]
    close(losses.orpo_loss(MEANS_W, MEANS_L, beta=0.1), *want, atol=1e-12)


@pytest.mark.parametrize("mean", [-1e4, -40.0, -1.0, -1e-3, -1e-8, -1e-12])
def test_orpo_keeps_its_digits_near_both_ends(mean: float) -> None:
    one, other = torch.tensor([mean], dtype=F64), torch.tensor([-0.5], dtype=F64)
    for pair in ((one, other), (other, one)):
        want = float(formulas.orpo(*(mpf(float(v)) for v in pair), beta=0.1))
        torch.testing.assert_close(losses.orpo_loss(*pair), torch.tensor([want], dtype=F64), atol=0, rtol=1e-13)


def test_orpo_at_probability_one_is_finite() -> None:
    pair = [torch.tensor([0.0, -1.0, 0.0], requires_grad=True), torch.tensor([-1.0, 0.0, 0.0], requires_grad=True)]
    out = losses.orpo_loss(*pair)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pair)


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name: str) -> None:
    check_derivatives(*CASES[name])


@pytest.mark.parametrize("name", CASES)
@extremes
def test_finite_at_extremes(name: str, dtype: torch.dtype, extreme: float) -> None:
    loss, count, *_ = CASES[name]
    check_extremes(loss, count, dtype, extreme)
