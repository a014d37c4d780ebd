"""Exact, cheap measures of images (3, H, W) in [0, 1]; the condition is ignored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_prefopt.judges.base import Judge

LUMA = (0.299, 0.587, 0.114)
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class Sharpness(Judge):
    """Variance of the 4-neighbour Laplacian of the luma (Rec. 601) in 0 to 255, without the border.

    Noise raises it too.

    Raises:
        ValueError: in `score`, an image that is not (3, H, W) with H and W at least 3.
    """

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) >= 0."""
        return torch.stack([_sharpness(_checked(s, i)) for i, s in enumerate(samples)])


def _sharpness(image: Tensor) -> Tensor:
    luma = 255 * (image * image.new_tensor(LUMA)[:, None, None]).sum(0)
    return F.conv2d(luma[None, None], luma.new_tensor(LAPLACIAN)[None, None]).var(correction=0)


class Colourfulness(Judge):
    """Hasler and Suesstrunk's M3 (2003): sqrt(s_rg^2 + s_yb^2) + .3 sqrt(m_rg^2 + m_yb^2) in 0 to 255.

    rg = R - G, yb = (R + G)/2 - B; s standard deviations, m means over the pixels. 0 for grey, about 110 for vivid.

    Raises:
        ValueError: in `score`, an image that is not (3, H, W) with H and W at least 3.
    """

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) >= 0."""
        return torch.stack([_colourfulness(_checked(s, i)) for i, s in enumerate(samples)])


def _colourfulness(image: Tensor) -> Tensor:
    r, g, b = 255 * image
    opponents = torch.stack([r - g, (r + g) / 2 - b]).flatten(1)
    return opponents.var(1, correction=0).sum().sqrt() + 0.3 * opponents.mean(1).square().sum().sqrt()


def _checked(image: Tensor, row: int) -> Tensor:
    """The image in float64.

    Raises:
        ValueError: another shape.
    """
    if image.dim() != 3 or image.shape[0] != 3 or min(image.shape[1:]) < 3:
        raise ValueError(f"sample {row} must be an image (3, H, W) with H and W >= 3, got shape {tuple(image.shape)}")
    return image.detach().double()
