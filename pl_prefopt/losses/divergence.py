"""f-DPO: the reverse KL of DPO replaced by another divergence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.utilities.checks import choice, positive, rows, within

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd", "alpha")
MAX_EXPONENT = 30.0
"""Beyond it e^x goes on as its tangent: value and slope stay finite in every dtype, and order is kept."""


def f_dpo_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, divergence: str = "reverse_kl", alpha: float = 0.5
) -> Tensor:
    """f-DPO: l(beta (s(r_w) - s(r_l))), s = f'(pi/pi_ref) up to constants (Wang et al. 2023, 2309.16240, eq. 10).

    reverse_kl: r; forward_kl: -e^{-r}; jsd: ln 2 - softplus(-r); alpha: -e^{-alpha r} / alpha. TRL's coefficient is
    1 - alpha of the paper. The official form overflows for r = -500; here the exponential goes on as its tangent beyond
    exponent 30, so the gradient never vanishes nor becomes NaN.

    Args:
        chosen: (B,) log-ratio.
        rejected: (B,) log-ratio.
        beta: > 0.
        divergence: one of reverse_kl, forward_kl, jsd, alpha.
        alpha: the paper's alpha in (0, 1).
    """
    rows(chosen=chosen, rejected=rejected)
    positive("beta", beta)
    gap = f_score(wide(chosen), divergence=divergence, alpha=alpha) - f_score(
        wide(rejected), divergence=divergence, alpha=alpha
    )
    return softplus(-beta * gap)


def f_score(logratios: Tensor, *, divergence: str, alpha: float = 0.5) -> Tensor:
    """s(r) of `f_dpo_loss`, elementwise; times beta it is f-DPO's implicit reward."""
    choice("divergence", divergence, DIVERGENCES)
    within("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
    if divergence == "reverse_kl":
        return logratios
    if divergence == "jsd":
        return math.log(2) - softplus(-logratios)
    a = 1.0 if divergence == "forward_kl" else alpha
    return -_bounded_exp(-a * logratios) / a


def _bounded_exp(x: Tensor) -> Tensor:
    top = math.exp(MAX_EXPONENT)
    return torch.where(x <= MAX_EXPONENT, torch.exp(x.clamp(max=MAX_EXPONENT)), top * (1 + x - MAX_EXPONENT))
