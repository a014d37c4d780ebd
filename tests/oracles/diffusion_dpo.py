"""The released Diffusion-DPO step written out again from the paper notes, for epsilon and v models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def official_loss(
    unet: Any,
    reference: Any,
    latents: Tensor,
    noise: Tensor,
    t: Tensor,
    text: Tensor,
    beta: float,
    v: bool,
    betas: Tensor,
) -> Tensor:
    """Winners stacked on losers (2B rows), noise and timestep repeated, one mean over the batch.

    Args:
        unet: the policy.
        reference: the frozen UNet.
        latents: (2B, C, h, w), winners first.
        noise: (B, C, h, w).
        t: (B,).
        text: (B, L, D).
        beta: official scale.
        v: velocity instead of noise as the target.
        betas: (T,) variances of the forward process.
    """
    abar = torch.cumprod(1 - betas.double(), 0)[t].float().repeat(2).view(-1, 1, 1, 1)
    noise, when, words = noise.repeat(2, 1, 1, 1), t.repeat(2), text.repeat(2, 1, 1)
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    target = abar.sqrt() * noise - (1 - abar).sqrt() * latents if v else noise

    def gap(network: Any) -> Tensor:
        error = (network(noisy, when, words).sample.float() - target.float()).pow(2).mean(dim=[1, 2, 3])
        winner, loser = error.chunk(2)
        return winner - loser

    with torch.no_grad():
        ref_gap = gap(reference)
    return -F.logsigmoid(-0.5 * beta * (gap(unet) - ref_gap)).mean()
