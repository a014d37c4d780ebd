"""Losses of a chosen and a rejected log-ratio.

Legend: r_w = `chosen`, r_l = `rejected`, both (B,) in nats, token sums unless said; z = r_w - r_l; beta > 0 is an
inverse temperature; l(x) = -log sigmoid(x) = softplus(-x). Every function returns (B,), unreduced, finite for |r| up to
1e4 and twice differentiable, float32 for half-precision input, and raises ValueError for shapes that differ, integer
tensors, and a beta that is not a finite number > 0, besides what it lists.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.utilities.checks import per_row, positive, probabilities, rows, within


def _pair(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    rows(chosen=chosen, rejected=rejected)
    positive("beta", beta)
    return wide(chosen), wide(rejected)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float | Tensor = 0.0,
    margin: float | Tensor = 0.0,
) -> Tensor:
    r"""Direct preference optimisation, with conservative labels and a margin.

    (1 - eps) l(beta z - m) + eps l(-(beta z - m)). Rafailov et al. 2023 (2305.18290), eq. 7; cDPO for eps > 0. TRL
    since 0.29 ignores eps in its sigmoid loss; the original code and this function do not.

    Args:
        chosen: (B,) log-ratio of the better sample, token sum.
        rejected: (B,) log-ratio of the worse sample.
        beta: inverse temperature, > 0.
        label_smoothing: eps in [0, 1], probability that the label is wrong; a tensor (B,) gives one per pair.
        margin: m in nats of reward, subtracted inside the sigmoid; float or (B,).

    Returns:
        (B,) loss; ln 2 at r = 0, eps = 0, m = 0.

    Raises:
        ValueError: shapes that differ, beta <= 0, eps outside [0, 1], a margin that is not finite.

    Example:
        >>> import torch
        >>> dpo_loss(torch.tensor([1.0]), torch.tensor([-0.5])).round(decimals=6)
        tensor([0.6210])
    """
    r_w, r_l = _pair(chosen, rejected, beta)
    eps = per_row("label_smoothing", label_smoothing, r_w)
    probabilities("label_smoothing", eps)
    logits = beta * (r_w - r_l) - per_row("margin", margin, r_w)
    return (1 - eps) * softplus(-logits) + eps * softplus(logits)


def ipo_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """Identity preference optimisation: (z - 1/(2 beta))^2 (Azar et al. 2023, 2310.12036, eq. 17; beta is its tau).

    Whether r is a sum or a mean over tokens is up to the caller; `objectives.IPO(average=...)` offers both.

    Returns:
        (B,) loss; 1/(4 beta^2) at z = 0.
    """
    r_w, r_l = _pair(chosen, rejected, beta)
    return (r_w - r_l - 1 / (2 * beta)).square()


def hinge_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """SLiC / RSO hinge: max(0, 1 - beta z) (2305.10425, 2309.06657)."""
    r_w, r_l = _pair(chosen, rejected, beta)
    return torch.relu(1 - beta * (r_w - r_l))


def robust_dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """Robust DPO: [(1 - eps) l(beta z) - eps l(-beta z)] / (1 - 2 eps), unbiased under labels flipped with rate eps.

    Chowdhury et al. 2024 (2403.00409). Unbounded below.

    Raises:
        ValueError: eps outside [0, 1/2).
    """
    r_w, r_l = _pair(chosen, rejected, beta)
    within("label_smoothing", label_smoothing, 0.0, 0.5, open_high=True)
    logits = beta * (r_w - r_l)
    eps = label_smoothing
    return ((1 - eps) * softplus(-logits) - eps * softplus(logits)) / (1 - 2 * eps)


def exo_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """EXO: reverse KL of the Bernoulli(sigma(beta z)) to the smoothed label (Ji et al. 2024, 2402.00856).

    sigma(x)[log sigma(x) - log(1 - eps)] + sigma(-x)[log sigma(-x) - log eps], x = beta z.

    Raises:
        ValueError: eps outside (0, 1).
    """
    r_w, r_l = _pair(chosen, rejected, beta)
    within("label_smoothing", label_smoothing, 0.0, 1.0, open_low=True, open_high=True)
    x = beta * (r_w - r_l)
    better = torch.sigmoid(x) * (-softplus(-x) - math.log1p(-label_smoothing))
    return better + torch.sigmoid(-x) * (-softplus(x) - math.log(label_smoothing))


def nca_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """NCA, pairwise: l(beta r_w) + l(-beta r_w)/2 + l(-beta r_l)/2 (Chen et al. 2024, 2402.05369)."""
    r_w, r_l = _pair(chosen, rejected, beta)
    return softplus(-beta * r_w) + 0.5 * softplus(beta * r_w) + 0.5 * softplus(beta * r_l)


def bco_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, delta: float | Tensor = 0.0) -> Tensor:
    """BCO on pairs: l(beta r_w - delta) + l(-(beta r_l - delta)) (Jung et al. 2024, 2404.04656).

    Args:
        chosen: (B,).
        rejected: (B,).
        beta: > 0.
        delta: reward shift; the paper's running mean of the rewards, which TRL dropped after 0.28.
    """
    r_w, r_l = _pair(chosen, rejected, beta)
    shift = per_row("delta", delta, r_w)
    return softplus(shift - beta * r_w) + softplus(beta * r_l - shift)


def sppo_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """SPPO with hard labels: (r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2 (Wu et al. 2024, 2405.00675)."""
    r_w, r_l = _pair(chosen, rejected, beta)
    return (r_w - 0.5 / beta).square() + (r_l + 0.5 / beta).square()


def apo_zero_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-zero: 1 - sigma(beta r_w) + sigma(beta r_l): chosen up, rejected down (2408.06266)."""
    r_w, r_l = _pair(chosen, rejected, beta)
    return torch.sigmoid(-beta * r_w) + torch.sigmoid(beta * r_l)


def apo_down_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-down: sigma(beta r_w) + 1 - sigma(beta z): both may fall, the rejected one faster (2408.06266)."""
    r_w, r_l = _pair(chosen, rejected, beta)
    return torch.sigmoid(beta * r_w) + torch.sigmoid(-beta * (r_w - r_l))


def discopop_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, tau: float = 0.05) -> Tensor:
    """DiscoPOP: l(rho)(1 - m) + e^{-rho} m, rho = beta z, m = sigma(rho/tau) (Lu et al. 2024, 2406.08414).

    e^{-rho} m is computed as exp(-rho + log sigma(rho/tau)): the factor alone overflows where the product is tiny.

    Raises:
        ValueError: tau outside (0, 1]; beyond 1 the product overflows for rho << 0.
    """
    r_w, r_l = _pair(chosen, rejected, beta)
    within("tau", tau, 0.0, 1.0, open_low=True)
    rho = beta * (r_w - r_l)
    mixed = torch.exp(-rho - softplus(-rho / tau))
    return softplus(-rho) * torch.sigmoid(-rho / tau) + mixed


def dpop_loss(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, penalty: float = 5.0) -> Tensor:
    """DPO-positive (Smaug, 2402.13228): l(beta (z - lambda max(0, -r_w))), lambda = `penalty` 5 to 50; unverified."""
    r_w, r_l = _pair(chosen, rejected, beta)
    within("penalty", penalty, 0.0, math.inf, open_high=True)
    return softplus(-beta * (r_w - r_l - penalty * torch.relu(-r_w)))
