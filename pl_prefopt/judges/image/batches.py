"""Batches of 8-bit images for the preprocessing of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@torch.no_grad()
def in_batches(
    score: Callable[[list[str], list[Image]], Tensor], conditions: Sequence[str], samples: Sequence[Tensor], size: int
) -> Tensor:
    """(B,) float32 scores on the CPU; `score` receives `size` captions and PIL images at a time."""
    parts = []
    for start in range(0, len(samples), size):
        images = [pil_image(sample, start + i) for i, sample in enumerate(samples[start : start + size])]
        parts.append(score(list(conditions[start : start + size]), images).float().cpu())
    return torch.cat(parts) if parts else torch.zeros(0)


def pil_image(sample: Tensor, row: int) -> Image:
    """8-bit PIL image of (3, H, W) in [0, 1].

    Raises:
        ValueError: another shape or range, or not finite.
    """
    from PIL import Image

    if sample.dim() != 3 or sample.shape[0] != 3 or not bool(((sample >= 0) & (sample <= 1)).all()):
        raise ValueError(f"sample {row} must be an image (3, H, W), finite, in [0, 1], got {_described(sample)}")
    return Image.fromarray((sample.detach().float() * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _described(sample: Tensor) -> str:
    values = f" with values from {float(sample.min()):g} to {float(sample.max()):g}" if sample.numel() else ""
    return f"{tuple(sample.shape)}{values}"
