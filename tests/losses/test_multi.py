"""MODPO by hand and by formula; PAMA against a solver of its convex problem, an explicit loop, and differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from pl_prefopt import losses
from tests.losses.numerics import F64, L, W, check_derivatives, check_extremes, close, extremes
from tests.losses.pairs import CHOSEN, REJECTED
from tests.oracles import formulas

torch.set_num_threads(1)
M_W, M_L = torch.tensor([[0.2], [-0.1], [0.3]], dtype=F64), torch.tensor([[-0.2], [0.4], [0.1]], dtype=F64)


def _modpo(chosen: Tensor, rejected: Tensor, m_w: Tensor, m_l: Tensor) -> Tensor:
    return losses.modpo_loss(chosen, rejected, m_w[:, None], m_l[:, None], weights=torch.tensor([0.5, 0.5]))


def test_modpo_by_hand() -> None:
    # R_w - R_l = 2 [x - (m_w - m_l)/2] = .3 - .4, -.3 + .5, .4 - .2
    out = losses.modpo_loss(W, L, M_W, M_L, weights=torch.tensor([0.5, 0.5]), beta=0.1)
    close(out, 0.744397, 0.598139, 0.598139)


def test_modpo_with_three_objectives() -> None:
    g = torch.Generator().manual_seed(0)
    m_w, m_l = torch.randn(2, 3, 2, generator=g, dtype=F64)
    weights = [0.5, 0.2, 0.3]
    rows = zip(CHOSEN, REJECTED, m_w.tolist(), m_l.tolist(), strict=True)
    want = [float(formulas.modpo(*row, weights=weights, beta=0.1)) for row in rows]
    close(losses.modpo_loss(W, L, m_w, m_l, weights=torch.tensor(weights, dtype=F64), beta=0.1), *want, atol=1e-12)
    moved = losses.modpo_loss(W, L, m_w + 3, m_l + 3, weights=torch.tensor(weights, dtype=F64), beta=0.1)
    close(moved, *want, atol=1e-12)


def test_modpo_with_one_weight_is_dpo() -> None:
    none = torch.zeros(3, 0, dtype=F64)
    out = losses.modpo_loss(W, L, none, none, weights=torch.ones(1), beta=0.1)
    torch.testing.assert_close(out, losses.dpo_loss(W, L), atol=1e-12, rtol=0)


def test_derivatives_of_modpo() -> None:
    check_derivatives(_modpo, 4)


@extremes
def test_modpo_is_finite_at_extremes(dtype: torch.dtype, extreme: float) -> None:
    check_extremes(_modpo, 4, dtype, extreme)


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 0.4 * torch.randn(4, 5, generator=g, dtype=F64), torch.randn(4, 5, 3, generator=g, dtype=F64)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_the_pama_scale_is_the_least_convex_combination(shift: float) -> None:
    for values in torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=F64) + shift:
        a = values.numpy()
        solved = minimize(
            lambda c, a=a: float(c @ a) ** 2, np.full(4, 0.25), bounds=[(0, 1)] * 4, tol=1e-14,
            constraints={"type": "eq", "fun": lambda c: c.sum() - 1},
        )  # fmt: skip
        assert float(losses.pama_scale(values)) == pytest.approx(float(solved.x @ a), abs=1e-5)


def test_the_pama_scale_by_hand() -> None:
    rows = torch.tensor([[0.5, 2.0], [-0.5, 2.0], [-0.5, -2.0], [0.0, 3.0]])
    assert losses.pama_scale(rows).tolist() == [0.5, 0.0, -0.5, 0.0]


def by_loops(r: Tensor, a: Tensor, clip: float, scale: str, mask: Tensor) -> list[float]:
    """Sample by sample, with the minimum and the clipping written out."""
    cells = [(b, k) for b in range(r.shape[0]) for k in range(r.shape[1]) if mask[b, k]]
    free = [(b, k) for b, k in cells if math.exp(r[b, k]) <= 1 + clip]
    means = [sum(max(float(a[b, k, i]), 0.0) for b, k in free) / max(len(free), 1) for i in range(a.shape[2])]
    out = []
    for b in range(r.shape[0]):
        terms = []
        for k in (k for row, k in cells if row == b):
            u = math.exp(r[b, k])
            s = min(means) if scale == "batch" else min(max(float(x), 0.0) for x in a[b, k])
            terms.append(s * min(u, min(max(u, 1 - clip), 1 + clip)))
        out.append(-sum(terms) / len(terms))
    return out


@pytest.mark.parametrize("scale", ["term", "batch"])
def test_pama_by_loops(scale: str) -> None:
    r, a = example()
    mask = torch.arange(5) < torch.tensor([[5], [3], [4], [1]])
    result = losses.pama_loss(r, a.masked_fill(~mask[..., None], math.nan), clip=0.3, scale=scale, mask=mask)
    torch.testing.assert_close(result, torch.tensor(by_loops(r, a, 0.3, scale, mask), dtype=F64), atol=1e-12, rtol=0)


def test_pama_with_one_objective_is_noon_ppo() -> None:
    r, a = example()
    u = r.exp()
    gain = a[..., :1].clamp(min=0)[..., 0]
    want = -torch.minimum(u * gain, u.clamp(0.8, 1.2) * gain).mean(-1)
    torch.testing.assert_close(losses.pama_loss(r, a[..., :1]), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", ["term", "batch"])
def test_derivatives_of_pama(scale: str) -> None:
    r, a = example(2)
    assert torch.autograd.gradcheck(lambda x: losses.pama_loss(x, a, scale=scale), r.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: losses.pama_loss(x, a, scale=scale), r)


@extremes
def test_pama_is_finite_at_extremes(dtype: torch.dtype, extreme: float) -> None:
    r = torch.tensor([[extreme, -extreme, 0.0]], dtype=dtype, requires_grad=True)
    out = losses.pama_loss(r, torch.ones(1, 3, 2, dtype=dtype))
    assert out.dtype == torch.float32
    (gradient,) = torch.autograd.grad(out.sum(), r)
    assert torch.isfinite(out).all()
    assert gradient[0, 0] == 0.0
    assert torch.isfinite(gradient).all()


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: losses.pama_scale(torch.zeros(3, 0)), r"advantages must be \(..., M\) with M >= 1, got shape \(3, 0\)"),
    (lambda: losses.pama_scale(torch.tensor([math.nan])), r"advantages must be finite, got nan"),
    (lambda: losses.pama_loss(torch.zeros(2, 3), torch.zeros(2, 3)), r"advantages must be \(2, 3, M\), got shape"),
    (lambda: losses.pama_loss(*example(), clip=0.0), r"clip must be a finite number > 0, got 0.0"),
    (lambda: losses.pama_loss(*example(), scale="token"), r"scale must be one of term, batch, got 'token'"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
