"""Sampling of masked autoregressive models: tokens appear a few at a time, each denoised by the head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.diffusion.families import Condition


def revealed(tokens: int, iterations: int) -> list[int]:
    """How many tokens are known after each iteration: S - floor(S cos(pi/2 k/K)), each at least one more, S at the end.

    Args:
        tokens: S.
        iterations: K >= 1; more than S are taken as S.
    """
    rounds = min(iterations, tokens)
    known: list[int] = []
    for k in range(1, rounds + 1):
        wanted = tokens - math.floor(tokens * math.cos(math.pi / 2 * k / rounds))
        least, most = (known[-1] if known else 0) + 1, tokens - (rounds - k)
        known.append(min(max(wanted, least), most))
    return known


@torch.no_grad()
def unmask(
    network: Any,
    scheduler: Any,
    cond: Condition,
    shape: tuple[int, int, int],
    generators: Sequence[torch.Generator],
    *,
    iterations: int = 64,
    steps: int = 100,
    guidance: float = 4.0,
) -> Tensor:
    """Latents (N, C, h, w) for N captions; a row's result depends on its own generator only.

    Every iteration reveals the next tokens of a random order; the head starts them from noise and takes `steps` DDIM
    steps with eps = eps_empty + guidance (eps_caption - eps_empty) (LightGen, 2503.08619: 64, 100, 4).

    Args:
        network: a MaskedAutoregressive, with or without adapters.
        scheduler: the DDPM scheduler that the head is trained with.
        cond: `prompt_embeds` (N, L, E).
        shape: (C, h, w).
        generators: one per row, on the CPU.
        iterations: of the cosine schedule of tokens.
        steps: of the head.
        guidance: 1 does not look at the empty caption.
    """
    like = next(network.parameters())
    latents = torch.zeros(len(generators), *shape, device=like.device, dtype=like.dtype)
    tokens = network.patchify(latents)
    count, size = tokens.shape[1:]
    order = torch.stack([torch.randperm(count, generator=g) for g in generators]).to(like.device)
    noise = torch.stack([torch.randn(count, size, generator=g) for g in generators]).to(like)
    text = cond["prompt_embeds"].to(like)
    start = 0
    for end in revealed(count, iterations):
        masked = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, :start], False)
        index = order[:, start:end].unsqueeze(-1)
        views = [False] if guidance == 1 else [False, True]
        drops = [torch.full((len(tokens),), v, device=like.device) for v in views]
        conditions = [network.condition(latents, masked, text, drop) for drop in drops]
        chosen = [c.gather(1, index.expand(-1, -1, c.shape[-1])) for c in conditions]
        fresh = noise.gather(1, index.expand(-1, -1, size))
        tokens = tokens.scatter(
            1, index.expand(-1, -1, size), _denoise(network, scheduler, fresh, chosen, steps, guidance)
        )
        latents, start = network.unpatchify(tokens, shape[1:]), end
    return latents.float()


def _denoise(network: Any, scheduler: Any, x: Tensor, conditions: list[Tensor], steps: int, guidance: float) -> Tensor:
    """Tokens (N, M, D) from noise, given one condition, or two for guidance."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    ddim: Any = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    for t in ddim.timesteps:
        times = t.to(x.device).expand(x.shape[:2])
        predictions = [network.head(x, times, c) for c in conditions]
        noise = predictions[-1] + guidance * (predictions[0] - predictions[-1])
        x = ddim.step(noise, t, x).prev_sample
    return x
