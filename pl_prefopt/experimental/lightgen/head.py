"""Diffusion head of a masked autoregressive model: a small network that denoises one token given a condition."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class DiffusionHead(nn.Module):
    """MLP with adaptive layer norm that predicts the noise of a token, each token with its own timestep.

    Depth residual blocks of the given width; time and condition shift, scale and gate every block (Li et al. 2024,
    2406.11838, section 3.3; LightGen, 2503.08619: depth 8, width 1536). The output starts at zero.

    Args:
        channels: numbers per token.
        condition: width of the condition.
        width: of the hidden layers.
        depth: number of residual blocks.
    """

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition, width)
        self.blocks = nn.ModuleList([_Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.leave = nn.Linear(width, channels)
        for layer in (self.modulation[1], self.leave):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Noise in `noisy` (..., channels), at timesteps (...) in [0, 1000), under the condition (..., condition)."""
        mix = self.time(sinusoids(timestep).to(noisy.dtype)) + self.condition(condition)
        hidden = self.enter(noisy)
        for block in self.blocks:
            hidden = block(hidden, mix)
        shift, scale = self.modulation(mix).chunk(2, -1)
        return self.leave(self.norm(hidden) * (1 + scale) + shift)


class _Block(nn.Module):
    """x + gate * mlp(norm(x) * (1 + scale) + shift), the three made from the condition; gate 0 at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        nn.init.zeros_(self.modulation[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.modulation[1].bias)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, mix: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(mix).chunk(3, -1)
        return hidden + gate * self.mlp(self.norm(hidden) * (1 + scale) + shift)


FREQUENCIES = 256


def sinusoids(timestep: Tensor, size: int = FREQUENCIES) -> Tensor:
    """(..., size) cosines and sines of timesteps (...) at frequencies from 1 down to 1/10000."""
    steps = torch.arange(size // 2, device=timestep.device, dtype=torch.float32)
    angles = timestep.float().unsqueeze(-1) * torch.exp(-math.log(10_000) * steps / (size // 2))
    return torch.cat([angles.cos(), angles.sin()], -1)
