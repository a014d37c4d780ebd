"""PAMA: one step scale for several objectives, in closed form."""

from __future__ import annotations

import math

from torch import Tensor

from pl_prefopt.losses._checks import choice, finite, floating, list_mask, positive, table
from pl_prefopt.losses._math import wide

SCALES = ("term", "batch")


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
    third-party code does; the official code was not found, so both readings are unverified.

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
