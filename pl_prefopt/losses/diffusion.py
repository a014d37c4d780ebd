"""Losses of denoising errors, for diffusion and flow models.

Legend: e = mean over all but B of (prediction - target)^2 in float32, for policy and reference on shared t and noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.losses.math import softplus, wide
from pl_prefopt.losses.pairwise import dpo_loss
from pl_prefopt.utilities.checks import positive, rows, within


def denoising_logratios(policy_errors: Tensor, reference_errors: Tensor) -> Tensor:
    """Surrogate of log pi/pi_ref from denoising errors: r = -(e_policy - e_ref) / 2 (Wallace et al. 2023, 2311.12908).

    Args:
        policy_errors: (B,) mean squared errors.
        reference_errors: (B,) of the reference on the same t and noise.
    """
    rows(policy_errors=policy_errors, reference_errors=reference_errors)
    return -0.5 * (wide(policy_errors) - wide(reference_errors))


def diffusion_dpo_loss(
    chosen_errors: Tensor,
    rejected_errors: Tensor,
    ref_chosen_errors: Tensor,
    ref_rejected_errors: Tensor,
    *,
    beta: float = 5000.0,
) -> Tensor:
    """Diffusion-DPO: l(-beta/2 [(e_w - e_l)_policy - (e_w - e_l)_ref]), the official scale (2311.12908, released code).

    The paper's pseudo-code sums over elements and uses -beta; the code averages and uses -beta/2, so beta = 5000 here
    is beta_sum = 5000 / (2 D), D = C H W. The number of timesteps is folded into beta. diffusers' SD script uses beta
    instead of beta/2.

    Args:
        chosen_errors: (B,) of the policy on the winner.
        rejected_errors: (B,) on the loser.
        ref_chosen_errors: (B,) of the reference.
        ref_rejected_errors: (B,).
        beta: > 0.
    """
    rows(
        chosen_errors=chosen_errors,
        rejected_errors=rejected_errors,
        ref_chosen_errors=ref_chosen_errors,
        ref_rejected_errors=ref_rejected_errors,
    )
    chosen = denoising_logratios(chosen_errors, ref_chosen_errors)
    rejected = denoising_logratios(rejected_errors, ref_rejected_errors)
    return dpo_loss(chosen, rejected, beta=beta)


def ddo_loss(real: Tensor, fake: Tensor, *, alpha: float = 1.0, beta: float = 0.02) -> Tensor:
    """Direct discriminative optimisation: l(beta D_real) + alpha l(-beta D_fake) (Zheng et al. 2025, 2503.01103).

    Args:
        real: (B,) log p/p_ref of data.
        fake: (B,) of samples of p_ref; not paired with `real`, only equally many.
        alpha: weight of the fake term, >= 0; .5 to 6 for diffusion, 10 to 100 autoregressive (unverified).
        beta: > 0; .01 to .1 with error sums (unverified); below 1 it overshoots towards p_ref^(1-1/beta)
            p_data^(1/beta).
    """
    rows(real=real, fake=fake)
    positive("beta", beta)
    within("alpha", alpha, 0.0, math.inf, open_high=True)
    return softplus(-beta * wide(real)) + alpha * softplus(beta * wide(fake))


def safeguard_factor(chosen_residuals: Tensor, rejected_residuals: Tensor, *, mu: float) -> Tensor:
    """Share of the loser's gradient that keeps the winner's error from rising, one number per batch (Diffusion-SDPO).

    With g = residual, the error's gradient with respect to the prediction up to a common factor:
    min(1, (1 - mu) |g_w|^2 / (g_l . g_w)) where g_l . g_w > 0, else 1.

    Args:
        chosen_residuals: (B, ...) prediction minus target of the winner.
        rejected_residuals: (B, ...) of the loser.
        mu: in (0, 1); .9 for SD 1.5, .6 for SDXL.

    Returns:
        A scalar in [0, 1], without gradient.
    """
    within("mu", mu, 0.0, 1.0, open_low=True, open_high=True)
    chosen, rejected = wide(chosen_residuals.detach()), wide(rejected_residuals.detach())
    along = (chosen * rejected).sum()
    share = ((1 - mu) * chosen.square().sum() / along.clamp(min=1e-30)).clamp(0.0, 1.0)
    return torch.where(along > 0, share, torch.ones_like(share))


def mapo_loss(
    chosen_errors: Tensor, rejected_errors: Tensor, *, beta: float = 0.1, scale: float = 0.5, steps: int = 1000
) -> Tensor:
    """MaPO: m_w - beta log sigma(T [f(m_w) - f(m_l)]), f(x) = s x / (e^{s x} - 1); no reference (2406.06424, code).

    Args:
        chosen_errors: (B,) of the policy on the winner, >= 0.
        rejected_errors: (B,) on the loser.
        beta: weight of the ratio term, > 0.
        scale: s, > 0.
        steps: T, number of training timesteps.
    """
    rows(chosen_errors=chosen_errors, rejected_errors=rejected_errors)
    positive("beta", beta)
    positive("scale", scale)
    positive("steps", steps)
    winner, loser = wide(chosen_errors), wide(rejected_errors)
    return winner + beta * softplus(-steps * (_bernoulli(scale * winner) - _bernoulli(scale * loser)))


def _bernoulli(x: Tensor) -> Tensor:
    """X / (e^x - 1), 1 at 0, without 0 / 0, falling to 0 without overflow."""
    small = x.abs() < 1e-3
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, 1 - x / 2 + x * x / 12, safe * torch.exp(-safe) / -torch.expm1(-safe))


def diffusion_kto_loss(
    gains: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    *,
    beta: float = 1000.0,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Diffusion-KTO on unpaired samples: w_y (1 - sigma(+-beta (g - z))), + where the sample is desirable.

    Args:
        gains: (B,) g = e_ref - e_policy.
        desirable: (B,) bool.
        baseline: scalar z >= 0 without gradient: max(0, mean of g over the batch) in the paper's code.
        beta: > 0.
        weights: of desirable and of undesirable samples, >= 0.
    """
    rows(gains=gains)
    positive("beta", beta)
    for name, value in zip(("weights[0]", "weights[1]"), weights, strict=True):
        within(name, value, 0.0, math.inf, open_high=True)
    if desirable.shape != gains.shape or desirable.dtype != torch.bool:
        raise ValueError(f"desirable must be bool {tuple(gains.shape)}, got {desirable.dtype} {tuple(desirable.shape)}")
    sign = torch.where(desirable, 1.0, -1.0).to(wide(gains))
    weight = torch.where(desirable, float(weights[0]), float(weights[1])).to(sign)
    return weight * torch.sigmoid(-sign * beta * (wide(gains) - baseline.detach()))


def linear_dpo_loss(
    chosen_errors: Tensor,
    rejected_errors: Tensor,
    ref_chosen_errors: Tensor,
    ref_rejected_errors: Tensor,
    *,
    beta: float = 100.0,
    eta: float = 1e-3,
) -> Tensor:
    """Linear-DPO: sg[clamp(.2 beta ((m_w - m_l) - (r_w - r_l)) + .5, eta, 1 - eta)] (m_w - m_l) (2605.21123).

    The weight is the sigmoid's gradient made linear; the paper's reference is an EMA of the policy (.99 to .995).

    Args:
        chosen_errors: (B,) m_w of the policy on the winner.
        rejected_errors: (B,) m_l on the loser.
        ref_chosen_errors: (B,) r_w of the reference.
        ref_rejected_errors: (B,) r_l.
        beta: > 0; 100 (SD 1.5), 500 (SDXL), 5000 (SD3).
        eta: least weight, in [0, 1/2); .05 for SD3.
    """
    rows(
        chosen_errors=chosen_errors,
        rejected_errors=rejected_errors,
        ref_chosen_errors=ref_chosen_errors,
        ref_rejected_errors=ref_rejected_errors,
    )
    positive("beta", beta)
    within("eta", eta, 0.0, 0.5, open_high=True)
    gap = wide(chosen_errors) - wide(rejected_errors)
    ref_gap = wide(ref_chosen_errors) - wide(ref_rejected_errors)
    weight = (0.2 * beta * (gap - ref_gap) + 0.5).clamp(eta, 1 - eta).detach()
    return weight * gap


def dspo_loss(
    chosen_errors: Tensor,
    rejected_errors: Tensor,
    ref_chosen_errors: Tensor,
    ref_rejected_errors: Tensor,
    chosen_products: Tensor,
    *,
    beta: float = 0.01,
) -> Tensor:
    """DSPO: |d_w - c (d_w - d_ref)|^2, c = beta (1 - sigma(inside)), d = prediction - target (released SD 1.5 code).

    Written out with d_w . d_ref, so that errors suffice: (1-c)^2 m_w + 2c(1-c) <d_w, d_ref> + c^2 r_w; inside as in
    `diffusion_dpo_loss`, with gradient. The released SDXL branch differs.

    Args:
        chosen_errors: (B,) m_w of the policy on the winner.
        rejected_errors: (B,) on the loser.
        ref_chosen_errors: (B,) r_w of the reference.
        ref_rejected_errors: (B,).
        chosen_products: (B,) mean over elements of d_w d_ref on the winner.
        beta: > 0.
    """
    rows(chosen_errors=chosen_errors, chosen_products=chosen_products)
    inside = beta * (
        denoising_logratios(chosen_errors, ref_chosen_errors)
        - denoising_logratios(rejected_errors, ref_rejected_errors)
    )
    positive("beta", beta)
    c = beta * torch.sigmoid(-inside)
    policy, reference, products = wide(chosen_errors), wide(ref_chosen_errors), wide(chosen_products)
    return (1 - c) ** 2 * policy + 2 * c * (1 - c) * products + c**2 * reference
