"""Influence of groups of training data on held-out losses, and the mixture that follows (TiKMiX, 2508.17677).

Legend: P parameters, K sources, T held-out tasks, w (K,) weights >= 0 with sum 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.utilities.seeding import keyed_generator

METHODS = ("identity", "diagonal", "cg")
SURROGATES = ("lightgbm", "sklearn")
Product = Callable[[Tensor], Tensor]


def group_influence(held_out: Tensor, sources: Tensor, solve: Product) -> Tensor:
    """S_tk = grad f_t . H^-1 grad L_k: by how much held-out loss t falls per unit of weight added to source k.

    To first order, leaving source k out of sum_k w_k L_k and training to the end raises f_t by w_k S_tk. The paper's
    I is the same for a metric that should rise, hence without the minus sign here.

    Args:
        held_out: (T, P) gradients of held-out losses.
        sources: (K, P) gradients of the sources' training losses.
        solve: v (P,) -> H^-1 v (P,).

    Returns:
        (T, K).
    """
    return torch.stack([solve(g) for g in held_out]) @ sources.T


def conjugate_gradient(product: Product, right: Tensor, *, steps: int = 10, tolerance: float = 1e-5) -> Tensor:
    """Solve product(x) = right, product symmetric; stops at `steps`, at convergence, or at negative curvature.

    Args:
        product: v (P,) -> A v (P,).
        right: (P,).
        steps: most iterations, >= 1.
        tolerance: bound of |residual| / |right|.
    """
    x, residual = torch.zeros_like(right), right.clone()
    direction = residual
    size = residual @ residual
    goal = (tolerance**2) * size
    for _ in range(steps):
        image = product(direction)
        curvature = direction @ image
        if size <= goal or curvature <= 0:
            break
        step = size / curvature
        x, residual = x + step * direction, residual - step * image
        size, before = residual @ residual, size
        direction = residual + size / before * direction
    return x if bool(x.any()) else right


def hutchinson_diagonal(product: Product, like: Tensor, *, probes: int = 4, seed: int = 0) -> Tensor:
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
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if damping < 0:
        raise ValueError(f"damping must be >= 0, got {damping}")
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
    to 1e-5. From uniform, then from the prior if that does not end at a feasible point. The paper divides by
    max_k S_tk, which turns signs round where all influences are negative; we take absolute values.

    Args:
        influence: (T, K), higher is better.
        prior: (K,) weights in use.
        alpha: weight of balance between tasks, >= 0.
        beta: weight of total influence, >= 0.
        gamma: weight of the entropy, >= 0.

    Returns:
        (K,) float64.

    Raises:
        ValueError: shapes that do not fit, values that are not finite.
    """
    from scipy.optimize import minimize

    s, prior = np.asarray(influence, dtype=float), np.asarray(prior, dtype=float)
    if s.ndim != 2 or prior.shape != s.shape[1:] or not np.isfinite(s).all():
        raise ValueError(f"influence must be (T, K), finite, and prior (K,); got {s.shape} and {prior.shape}")
    scaled = s / (np.abs(s).max(1, keepdims=True) + 1e-8)
    least = scaled @ prior
    centred = (scaled - scaled.mean(0)) / np.sqrt(len(s))

    def cost(w: np.ndarray, width: float) -> tuple[float, np.ndarray]:
        logs, spread = np.log(np.maximum(w, 1e-12)), centred @ w
        size = np.sqrt(spread @ spread + width**2)
        value = alpha * size - beta * np.sum(scaled @ w) + gamma * np.sum(w * logs)
        return float(value), alpha * spread @ centred / size - beta * scaled.sum(0) + gamma * (logs + 1)

    rules: list[dict[str, Any]] = [
        {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        {"type": "ineq", "fun": lambda w: scaled @ w - least, "jac": lambda w: scaled},
    ]
    for w in (np.full(len(prior), 1 / len(prior)), prior / prior.sum()):
        for width in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
            w = minimize(
                cost, w, (width,), "SLSQP", jac=True, bounds=[(0.0, 1.0)] * len(w), constraints=rules,
                options={"ftol": 1e-12, "maxiter": 200},
            ).x  # fmt: skip
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
        samples: draws a round.
        top: how many of them are averaged.
        surrogate: "lightgbm", or "sklearn" (gradient boosting there).
        seed: key of all draws.

    Returns:
        (K,) float64.

    Raises:
        ValueError: settings out of range, an unknown surrogate.
    """
    from scipy.stats import qmc

    if candidates < 8 or rounds < 1 or not 1 <= top <= samples:
        raise ValueError(f"candidates >= 8, rounds >= 1, 1 <= top <= samples; got {candidates, rounds, top, samples}")
    prior, start = np.asarray(prior, dtype=float), np.asarray(start, dtype=float)
    sampler: Any = qmc.LatinHypercube  # the argument is called rng in newer releases, which still take seed
    units = sampler(len(prior), seed=seed).random(candidates - 2)
    tried = np.concatenate([prior * 0.5 * 4.0**units, prior[None], start[None]])
    tried /= tried.sum(1, keepdims=True)
    model = _surrogate(surrogate, seed).fit(tried, np.array([score(w) for w in tried]))
    rng = np.random.default_rng(seed)
    best = start
    for concentration in np.geomspace(30, 3000, rounds):
        drawn = rng.dirichlet(concentration * np.maximum(best, 1e-4), size=samples)
        pool = np.concatenate([drawn, best[None]])
        best = pool[np.argsort(-model.predict(pool), kind="stable")[:top]].mean(0)
    return best / best.sum()


def _surrogate(kind: str, seed: int) -> Any:
    if kind not in SURROGATES:
        raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}, got {kind!r}")
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
    found = torch.autograd.grad(
        value, parameters, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([g.reshape(-1) for g in parts])
