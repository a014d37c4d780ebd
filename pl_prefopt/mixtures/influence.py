"""Influence of groups of training data on held-out losses, and the mixture that follows (TiKMiX, 2508.17677).

Legend: P parameters, K sources, T held-out tasks, w (K,) weights >= 0 with sum 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.utilities.checks import choice, integer, not_negative
from pl_prefopt.utilities.seeding import keyed_generator

METHODS = ("identity", "diagonal", "cg")
SURROGATES = ("lightgbm", "sklearn")
Product = Callable[[Tensor], Tensor]
"""v (P,) -> matrix times v (P,)."""
PROBES = 4
"""Random vectors for the estimate of the diagonal."""


class Constraint(TypedDict):
    """A constraint of `scipy.optimize.minimize` and its Jacobian."""

    type: str
    fun: Callable[[np.ndarray], np.ndarray]
    jac: Callable[[np.ndarray], np.ndarray]


class Regressor(Protocol):
    """A model of scikit-learn's interface."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> object:
        """Fit to mixtures (N, K) and their measured values (N,)."""
        ...

    def predict(self, X: np.ndarray) -> Any:  # LightGBM declares lists and sparse arrays too
        """Return the value (N,) of each mixture (N, K)."""
        ...


def group_influence(held_out: Tensor, sources: Tensor, solve: Product) -> Tensor:
    """S_tk = grad f_t . H^-1 grad L_k: by how much held-out loss t falls per unit of weight added to source k.

    To first order, leaving source k out of sum_k w_k L_k and training to convergence raises f_t by w_k S_tk. The
    paper's I is the same for a metric to be maximised, hence without the minus sign here.

    Args:
        held_out: (T, P) gradients of held-out losses.
        sources: (K, P) gradients of the sources' training losses.
        solve: v (P,) -> H^-1 v (P,).

    Returns:
        (T, K).
    """
    return torch.stack([solve(g) for g in held_out]) @ sources.T


def conjugate_gradient(product: Product, right: Tensor, *, steps: int = 10, tolerance: float = 1e-5) -> Tensor:
    """Solve product(x) = right for a symmetric product; stops at `steps`, at convergence, or at negative curvature.

    Args:
        product: v (P,) -> A v (P,).
        right: (P,).
        steps: most iterations, >= 1.
        tolerance: bound of |residual| / |right|.

    Returns:
        (P,) x; `right` itself where the first direction already has negative curvature.
    """
    x, residual = torch.zeros_like(right), right.clone()
    direction = residual
    squared = residual @ residual
    goal = (tolerance**2) * squared
    for _ in range(steps):
        curved = product(direction)
        curvature = direction @ curved
        # The Hessian of a network is not positive definite: along negative curvature the quadratic has no minimum.
        if squared <= goal or curvature <= 0:
            break
        step = squared / curvature
        x, residual = x + step * direction, residual - step * curved
        squared, previous = residual @ residual, squared
        direction = residual + squared / previous * direction
    return x if bool(x.any()) else right


def hutchinson_diagonal(product: Product, like: Tensor, *, probes: int = PROBES, seed: int = 0) -> Tensor:
    """(P,) estimate of the diagonal of a matrix from products with random signs; exact for diagonal matrices."""
    total = torch.zeros_like(like)
    for i in range(probes):
        g = keyed_generator(seed, "probe", i)
        signs = (torch.randint(0, 2, like.shape, generator=g) * 2 - 1).to(like)
        total += signs * product(signs)
    return total / probes


def inverse(method: str, product: Product, like: Tensor, *, damping: float = 0.1, steps: int = 10) -> Product:
    """Return v -> (H + lambda)^-1 v by one of `METHODS`, lambda = damping * mean |diag H| (Hutchinson).

    "identity" takes H = 1; "diagonal" the absolute diagonal; "cg" conjugate gradients on Hessian products.

    Raises:
        ValueError: an unknown method, damping < 0.
    """
    choice("method", method, METHODS)
    not_negative("damping", damping)
    if method == "identity":
        return lambda v: v
    diagonal = hutchinson_diagonal(product, like).abs()
    shift = damping * diagonal.mean()
    if method == "diagonal":
        return lambda v: v / (diagonal + shift).clamp(min=torch.finfo(v.dtype).tiny)
    return lambda v: conjugate_gradient(lambda d: product(d) + shift * d, v, steps=steps)


def direct_mixture(
    influence: np.ndarray, prior: np.ndarray, *, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> np.ndarray:
    """TiKMiX-D: argmin_w alpha std(P) - beta sum(P) - gamma H(w), P_t = (S w)_t / (max_k |S_tk| + 1e-8).

    Subject to sum w = 1, w >= 0 and S w >= S prior (no task loses against the prior). The problem is convex, but std
    has a kink where all tasks gain alike, at which SLSQP stops short; so std is sqrt(var + c^2), with c going from .1
    to 1e-5. SLSQP starts from uniform weights, and again from the prior if it does not end at a feasible point. The
    paper divides by max_k S_tk, which reverses signs where all influences are negative; we take absolute values.

    Args:
        influence: (T, K), higher is better.
        prior: (K,) weights in use.
        alpha: weight of balance between tasks, >= 0.
        beta: weight of total influence, >= 0.
        gamma: weight of the entropy, >= 0.

    Returns:
        (K,) float64.

    Raises:
        ValueError: shapes that do not agree, values that are not finite.
    """
    from scipy.optimize import minimize

    s, prior = np.asarray(influence, dtype=float), np.asarray(prior, dtype=float)
    if s.ndim != 2 or prior.shape != s.shape[1:] or not np.isfinite(s).all():
        raise ValueError(f"influence must be (T, K), finite, and prior (K,), got {s.shape} and {prior.shape}")
    scaled = s / (np.abs(s).max(1, keepdims=True) + 1e-8)
    least = scaled @ prior
    centred = (scaled - scaled.mean(0)) / np.sqrt(len(s))

    def cost(w: np.ndarray, smoothing: float) -> tuple[float, np.ndarray]:
        """Smoothed objective, and its gradient."""
        logs, deviations = np.log(np.maximum(w, 1e-12)), centred @ w
        std = np.sqrt(deviations @ deviations + smoothing**2)
        value = alpha * std - beta * np.sum(scaled @ w) + gamma * np.sum(w * logs)
        return float(value), alpha * deviations @ centred / std - beta * scaled.sum(0) + gamma * (logs + 1)

    constraints: list[Constraint] = [
        {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        {"type": "ineq", "fun": lambda w: scaled @ w - least, "jac": lambda w: scaled},
    ]
    for w in (np.full(len(prior), 1 / len(prior)), prior / prior.sum()):
        for smoothing in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
            w = minimize(
                cost, w, (smoothing,), "SLSQP", jac=True, bounds=[(0.0, 1.0)] * len(w), constraints=constraints,
                options={"ftol": 1e-12, "maxiter": 200},
            ).x  # fmt: skip
            # the solution keeps bounds and sum only to its tolerance
            w = np.clip(w, 0, None) / max(np.clip(w, 0, None).sum(), 1e-12)
        if w.sum() > 0 and (scaled @ w >= least - 1e-6).all():
            return w
    return prior / prior.sum()


def regression_mixture(
    score: Callable[[np.ndarray], float],
    prior: np.ndarray,
    start: np.ndarray,
    *,
    candidates: int = 256,
    rounds: int = 8,
    samples: int = 512,
    top: int = 16,
    surrogate: str = "lightgbm",
    seed: int = 0,
) -> np.ndarray:
    """TiKMiX-M: measure candidates around the prior, fit a surrogate, refine by Dirichlet draws around the best.

    Candidates: Latin hypercube, factors .5 to 2 (log-uniform) on the prior, plus prior and start. Round t draws from
    Dirichlet(a_t w), a_t from 30 to 3,000 on a log scale, and moves w to the mean of the best `top`; from `start`.

    Args:
        score: w (K,) -> measured value, higher is better.
        prior: (K,) weights in use, all > 0.
        start: (K,) the direct mixture.
        candidates: number of measured mixtures, >= 8 (the paper: 256).
        rounds: rounds of refinement, >= 1.
        samples: draws per round.
        top: draws that are averaged, from 1 to `samples`.
        surrogate: "lightgbm", or "sklearn" (gradient boosting there).
        seed: key of all draws.

    Returns:
        (K,) float64.

    Raises:
        ValueError: settings out of range, an unknown surrogate.
    """
    from scipy.stats import qmc

    integer("candidates", candidates, least=8)
    integer("rounds", rounds)
    integer("top", top)
    integer("samples", samples, least=top)
    model = _surrogate(surrogate, seed)
    prior, start = np.asarray(prior, dtype=float), np.asarray(start, dtype=float)
    # newer releases call the argument rng, and still take seed
    hypercube = qmc.LatinHypercube(len(prior), seed=seed)  # pyright: ignore[reportCallIssue]
    mixtures = np.concatenate([prior * 0.5 * 4.0 ** hypercube.random(candidates - 2), prior[None], start[None]])
    mixtures /= mixtures.sum(1, keepdims=True)
    model.fit(mixtures, np.array([score(w) for w in mixtures]))
    rng = np.random.default_rng(seed)
    best = start
    for concentration in np.geomspace(30, 3000, rounds):
        drawn = rng.dirichlet(concentration * np.maximum(best, 1e-4), size=samples)
        pool = np.concatenate([drawn, best[None]])
        best = pool[np.argsort(-model.predict(pool), kind="stable")[:top]].mean(0)
    return best / best.sum()


def _surrogate(kind: str, seed: int) -> Regressor:
    choice("surrogate", kind, SURROGATES)
    if kind == "lightgbm":
        from lightgbm import LGBMRegressor

        return LGBMRegressor(
            n_estimators=200, learning_rate=0.05, num_leaves=8, min_child_samples=3, random_state=seed, verbosity=-1,
            n_jobs=1,
        )  # fmt: skip
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(random_state=seed)


def flat_gradient(
    value: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool | None = None
) -> Tensor:
    """(P,) gradient of a scalar, zero where it does not depend on a parameter."""
    gradients = torch.autograd.grad(
        value, parameters, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([g.reshape(-1) for g in filled])
