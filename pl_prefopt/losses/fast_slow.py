"""OFS-DPO: a fast and a slow adapter that chase each other."""

from __future__ import annotations

import math

from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.utilities.checks import positive, rows, within


def fast_slow_loss(
    fast_chosen: Tensor,
    fast_rejected: Tensor,
    slow_chosen: Tensor,
    slow_rejected: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.1,
    clamp: float = 10.0,
) -> tuple[Tensor, Tensor]:
    """Losses of the fast and the slow module of OFS-DPO (2406.05534).

    With margins z_F, z_S and sg = stop-gradient: fast = l(beta z_F) + alpha l(beta (z_F - sg[z_S])), slow = l(beta z_S)
    - alpha l(beta (sg[z_F] - z_S)); every logit is clamped to +-clamp, because the -alpha term is unbounded below. No
    official code; alpha, clamp and beta are our assumptions.

    Args:
        fast_chosen: (B,) log-ratio under the fast module.
        fast_rejected: (B,).
        slow_chosen: (B,) under the slow module.
        slow_rejected: (B,).
        beta: > 0.
        alpha: weight of the chasing terms, >= 0; 0 is two independent DPO runs.
        clamp: bound of the logits, > 0; no gradient beyond it.

    Returns:
        (fast (B,), slow (B,)).
    """
    rows(fast_chosen=fast_chosen, fast_rejected=fast_rejected, slow_chosen=slow_chosen, slow_rejected=slow_rejected)
    positive("beta", beta)
    positive("clamp", clamp)
    within("alpha", alpha, 0.0, math.inf, open_high=True)
    z_f, z_s = wide(fast_chosen) - wide(fast_rejected), wide(slow_chosen) - wide(slow_rejected)

    def loss(logits: Tensor) -> Tensor:
        return softplus(-(beta * logits).clamp(-clamp, clamp))

    fast = loss(z_f) + alpha * loss(z_f - z_s.detach())
    slow = loss(z_s) - alpha * loss(z_f.detach() - z_s)
    return fast, slow
