"""Losses of denoising errors, for diffusion and flow models.

Legend: e = mean over all but B of (prediction - target)^2 in float32, for policy and reference on shared t and noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_prefopt.losses._checks import positive, rows, within
from pl_prefopt.losses._math import softplus, wide
from pl_prefopt.losses.pairwise import dpo_loss


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
