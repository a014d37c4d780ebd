"""Influence against retraining on quadratics, solvers against dense algebra, mixtures against grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pl_prefopt.mixtures.influence import (
    conjugate_gradient,
    direct_mixture,
    flat_gradient,
    group_influence,
    hutchinson_diagonal,
    inverse,
    regression_mixture,
)

P, K = 6, 4


def quadratics(seed: int = 0, diagonal: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Curvatures (K, P, P) and minima (K, P) of the sources, the same of a held-out loss."""
    g = torch.Generator().manual_seed(seed)
    roots = torch.randn(K + 1, P, P, generator=g, dtype=torch.float64)
    curve = roots @ roots.mT / P + torch.eye(P, dtype=torch.float64)
    if diagonal:
        curve = torch.diag_embed(curve.diagonal(dim1=1, dim2=2))
    minima = torch.randn(K + 1, P, generator=g, dtype=torch.float64)
    return curve[:K], minima[:K], curve[K], minima[K]


def loss(curve: Tensor, minimum: Tensor, theta: Tensor) -> Tensor:
    return 0.5 * (theta - minimum) @ curve @ (theta - minimum)


def train(weights: Tensor, curve: Tensor, minima: Tensor) -> Tensor:
    """Minimise sum_k w_k L_k exactly."""
    right = torch.einsum("k,kij,kj->i", weights, curve, minima)
    return torch.linalg.solve(torch.einsum("k,kij->ij", weights, curve), right)


@pytest.mark.parametrize(("method", "diagonal"), [("cg", False), ("cg", True), ("diagonal", True)])
def test_influence_is_leave_one_group_out_retraining_to_first_order(method: str, diagonal: bool) -> None:
    """The relative error shrinks in proportion to the left-out weight: what is missing is of second order."""
    curve, minima, held_curve, held_minimum = quadratics(diagonal=diagonal)
    errors = []
    for small in (1e-3, 1e-4):
        weights = torch.tensor([1.0, 1.0, 1.0, small], dtype=torch.float64)
        theta = train(weights, curve, minima).requires_grad_(True)
        hessian = torch.einsum("k,kij->ij", weights, curve)
        sources = torch.stack([flat_gradient(loss(c, m, theta), [theta]) for c, m in zip(curve, minima, strict=True)])
        held = flat_gradient(loss(held_curve, held_minimum, theta), [theta])[None]
        solve = inverse(method, lambda v, h=hessian: h @ v, held[0], damping=0.0, steps=P)
        predicted = small * group_influence(held, sources, solve)[0, 3]
        without = train(weights * torch.tensor([1, 1, 1, 0]), curve, minima)
        actual = loss(held_curve, held_minimum, without) - loss(held_curve, held_minimum, theta.detach())
        errors.append(float((predicted - actual).abs() / actual.abs()))
    assert errors[1] < 5e-4
    assert errors[1] == pytest.approx(0.1 * errors[0], rel=0.02)


def test_solvers_equal_dense_algebra() -> None:
    curve, *_ = quadratics()
    matrix, right = curve[0], torch.arange(1.0, P + 1, dtype=torch.float64)
    x = conjugate_gradient(lambda v: matrix @ v, right, steps=P, tolerance=1e-12)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, right), rtol=1e-8, atol=1e-8)
    diagonal = torch.diag(torch.arange(1.0, P + 1, dtype=torch.float64))
    got = hutchinson_diagonal(lambda v: diagonal @ v, right, probes=1)
    torch.testing.assert_close(got, diagonal.diagonal())
    damped = inverse("diagonal", lambda v: diagonal @ v, right, damping=0.5)(right)
    torch.testing.assert_close(damped, right / (right + 0.5 * right.mean()))
    assert torch.equal(inverse("identity", lambda v: v * 0, right)(right), right)


def test_negative_curvature_ends_conjugate_gradients_finitely() -> None:
    right = torch.ones(3)
    assert torch.equal(conjugate_gradient(lambda v: -v, right), right)


def test_the_direct_mixture_equals_a_fine_grid() -> None:
    influence, prior = np.array([[1.0, -0.5, 0.2], [0.4, 0.8, -1.0]]), np.array([0.2, 0.3, 0.5])
    scaled = influence / np.abs(influence).max(1, keepdims=True)

    def cost(w: np.ndarray) -> float:
        p = scaled @ w
        return float(p.std() - p.sum() + np.sum(w * np.log(np.maximum(w, 1e-12))))

    ticks = np.linspace(0, 1, 201)
    grid = [np.array([a, b, 1 - a - b]) for a in ticks for b in ticks if a + b <= 1 + 1e-9]
    feasible = [w for w in grid if (influence @ w >= influence @ prior - 1e-9).all()]
    best = min(feasible, key=cost)
    found = direct_mixture(influence, prior)
    assert cost(found) <= cost(best) + 1e-4
    assert found == pytest.approx(best, abs=0.02)
    assert found.sum() == pytest.approx(1)
    assert (influence @ found >= influence @ prior - 1e-6).all()


def test_weight_goes_to_what_helps_and_entropy_keeps_some_for_the_rest() -> None:
    influence, prior = np.array([[1.0, 0.0, -1.0]]), np.full(3, 1 / 3)
    sharp, flat = (direct_mixture(influence, prior, gamma=g) for g in (0.1, 10.0))
    assert sharp[0] > 0.99
    assert flat[0] > flat[1] > flat[2] > 0.2


@pytest.mark.parametrize("surrogate", ["lightgbm", "sklearn"])
def test_the_regression_variant_finds_a_peak_that_no_line_has(surrogate: str) -> None:
    peak, prior = np.array([0.5, 0.2, 0.3]), np.full(3, 1 / 3)

    def score(w: np.ndarray) -> float:
        return -float(np.square(w - peak).sum())

    start = np.array([0.8, 0.1, 0.1])
    found = regression_mixture(score, prior, start, candidates=128, surrogate=surrogate)
    assert score(found) > 0.25 * score(prior)
    assert score(found) > 0.1 * score(start)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inverse("kfac", lambda v: v, torch.ones(2)), "method must be one of identity, diagonal, cg"),
        (lambda: inverse("cg", lambda v: v, torch.ones(2), damping=-1), "damping"),
        (lambda: direct_mixture(np.ones((1, 2)), np.ones(3)), "influence must be"),
        (lambda: regression_mixture(lambda w: 0.0, np.ones(2) / 2, np.ones(2) / 2, candidates=4), "candidates"),
        (lambda: regression_mixture(lambda w: 0.0, np.ones(2) / 2, np.ones(2) / 2, surrogate="x"), "surrogate"),
    ],
)
def test_bad_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
