"""Several objectives at once: MODPO (one of them has the labels) and PAMA (one step scale for all, in closed form)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.utilities.checks import choice, finite, floating, list_mask, positive, rows, table

SCALES = ("term", "batch")


def modpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_margins: Tensor,
    rejected_margins: Tensor,
    *,
    weights: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Multi-objective DPO: l(R_w - R_l), R = (beta r - sum_{i >= 1} w_i m_i) / w_0 (Zhou et al. 2023, 2310.03708).

    Args:
        chosen: (B,) log-ratio.
        rejected: (B,).
        chosen_margins: (B, M) rewards m_i of the other objectives; only differences within a pair matter.
        rejected_margins: (B, M).
        weights: (1 + M,) not negative, w_0 > 0, sum 1; w_0 belongs to the labels. weights = (1,) is DPO.
        beta: > 0.
    """
    rows(chosen=chosen, rejected=rejected)
    positive("beta", beta)
    for name, value in (("chosen_margins", chosen_margins), ("rejected_margins", rejected_margins)):
        if value.dim() != 2 or value.shape[0] != chosen.shape[0] or value.shape != chosen_margins.shape:
            raise ValueError(f"{name} must be (B, M) = ({chosen.shape[0]}, M), got shape {tuple(value.shape)}")
        finite(name, value)
    w = modpo_weights(weights, chosen_margins.shape[1]).to(wide(chosen))
    other = (chosen_margins.to(w) - rejected_margins.to(w)) @ w[1:]
    return softplus(-(beta * (wide(chosen) - wide(rejected)) - other) / w[0])


def modpo_weights(weights: Tensor | list[float], margins: int) -> Tensor:
    """Check the weights of `modpo_loss` and return them as a tensor.

    Raises:
        ValueError: a wrong count, a negative weight, w_0 = 0, or a sum other than 1.
    """
    values = [float(w) for w in weights]
    listed = ", ".join(f"{v:g}" for v in values)
    if not values or len(values) != margins + 1:
        raise ValueError(f"weights must be (1 + M,) = ({margins + 1},) for M = {margins} margins, got {listed}")
    if not (all(v >= 0 for v in values) and values[0] > 0):
        raise ValueError(f"weights must not be negative and the first must be > 0, got {listed}")
    if not abs(sum(values) - 1) <= 1e-4:
        raise ValueError(f"weights must sum to 1, got {listed} with sum {sum(values):.4f}; divide them by their sum")
    return torch.tensor(values, dtype=torch.float64)


def pama_scale(advantages: Tensor) -> Tensor:
    """The number nearest to 0 among all convex combinations of the advantages (He and Maghsudi 2025, 2508.07768).

    s* = argmin over sums s = sum_i c_i A_i with c on the simplex of s^2: 0 if the A_i differ in sign, the smallest if
    all are > 0, the largest if all are < 0. Where all objectives pull along one direction g, s* g is the step that no
    objective can object to.

    Args:
        advantages: (..., M), one number per objective, M >= 1, finite.

    Returns:
        (...) s*.
    """
    floating("advantages", advantages)
    if not advantages.dim() or not advantages.shape[-1]:
        raise ValueError(f"advantages must be (..., M) with M >= 1, got shape {tuple(advantages.shape)}")
    finite("advantages", advantages)
    return advantages.amin(-1).clamp(min=0) + advantages.amax(-1).clamp(max=0)


def pama_loss(
    logratios: Tensor, advantages: Tensor, *, clip: float = 0.2, scale: str = "term", mask: Tensor | None = None
) -> Tensor:
    """-mean_k s* min(u_k, 1 + clip), u = pi / pi_ref, s* = `pama_scale` of max(A, 0) (PAMA, 2508.07768).

    scale="term" takes s* for each sample: all objectives of one sample share the gradient of u, so this is exact.
    scale="batch" takes one s* from the means of the objectives over all samples whose ratio is not clipped, as
    third-party code does; no official code is known, so both readings are unverified.

    Args:
        logratios: (B, K) sequence log-ratios to the reference (not to an old policy), nats.
        advantages: (B, K, M), without gradient; negative ones count as 0.
        clip: epsilon, > 0.
        scale: "term" or "batch".
        mask: (B, K) bool, False at padding.

    Returns:
        (B,) loss, <= 0; its gradient is 0 for samples with u > 1 + clip.
    """
    table("logratios", logratios)
    positive("clip", clip)
    choice("scale", scale, SCALES)
    if advantages.dim() != 3 or advantages.shape[:2] != logratios.shape:
        raise ValueError(
            f"advantages must be ({logratios.shape[0]}, {logratios.shape[1]}, M), got shape {tuple(advantages.shape)}"
        )
    real = list_mask("mask", mask, logratios, 1)
    r, highest = wide(logratios), math.log1p(clip)
    gains = advantages.detach().to(r).masked_fill(~real[..., None], 0.0).clamp(min=0)
    if scale == "batch":
        free = real & (r.detach() <= highest)
        gains = (gains * free[..., None]).sum((0, 1)) / free.sum().clamp(min=1)
    terms = pama_scale(gains) * r.clamp(max=highest).exp()
    return -terms.masked_fill(~real, 0.0).sum(-1) / real.sum(-1)
