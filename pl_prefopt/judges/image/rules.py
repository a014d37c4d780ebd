"""Exact, cheap measures of pictures (3, H, W) in [0, 1]; the condition plays no part."""

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
        ValueError: in `score`, a picture that is not (3, H, W) with H and W at least 3.
    """

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) >= 0."""
        return torch.stack([_sharpness(checked(s, i)) for i, s in enumerate(samples)])


def _sharpness(picture: Tensor) -> Tensor:
    luma = 255 * (picture * picture.new_tensor(LUMA)[:, None, None]).sum(0)
    return F.conv2d(luma[None, None], luma.new_tensor(LAPLACIAN)[None, None]).var(correction=0)


class Colourfulness(Judge):
    """Hasler and Suesstrunk's M3 (2003): sqrt(s_rg^2 + s_yb^2) + .3 sqrt(m_rg^2 + m_yb^2) in 0 to 255.

    rg = R - G, yb = (R + G)/2 - B; s standard deviations, m means over the pixels. 0 for grey, about 110 for vivid.

    Raises:
        ValueError: in `score`, a picture that is not (3, H, W) with H and W at least 3.
    """

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) >= 0."""
        return torch.stack([_colourfulness(checked(s, i)) for i, s in enumerate(samples)])


def _colourfulness(picture: Tensor) -> Tensor:
    r, g, b = 255 * picture
    pair = torch.stack([r - g, (r + g) / 2 - b]).flatten(1)
    return pair.var(1, correction=0).sum().sqrt() + 0.3 * pair.mean(1).square().sum().sqrt()


def checked(picture: Tensor, row: int) -> Tensor:
    """A picture in float64.

    Raises:
        ValueError: another shape.
    """
    if picture.dim() != 3 or picture.shape[0] != 3 or min(picture.shape[1:]) < 3:
        raise ValueError(
            f"sample {row} has the shape {tuple(picture.shape)}; a picture is (3, H, W) with H and W at least 3"
        )
    return picture.detach().double()
