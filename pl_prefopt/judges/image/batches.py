"""What judges of pictures share: batches of 8-bit pictures, checked arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.utilities.dtypes import DTYPES


@torch.no_grad()
def in_batches(
    score: Callable[[list[str], list[Any]], Tensor], conditions: Sequence[str], samples: Sequence[Tensor], size: int
) -> Tensor:
    """(B,) float32 scores on the CPU, `size` pictures at a time, handed over as PIL pictures."""
    parts = []
    for start in range(0, len(samples), size):
        pictures = [as_picture(s, start + i) for i, s in enumerate(samples[start : start + size])]
        parts.append(score(list(conditions[start : start + size]), pictures).float().cpu())
    return torch.cat(parts) if parts else torch.zeros(0)


def as_picture(sample: Tensor, row: int) -> Any:
    """PIL picture of (3, H, W) in [0, 1], 8 bit.

    Raises:
        ValueError: another shape or range, or not finite.
    """
    from PIL import Image

    if sample.dim() != 3 or sample.shape[0] != 3 or not bool(((sample >= 0) & (sample <= 1)).all()):
        raise ValueError(f"sample {row} is {tuple(sample.shape)}; a picture is (3, H, W), finite, in [0, 1]")
    return Image.fromarray((sample.detach().float() * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def at_least_one(batch_size: int) -> int:
    """The batch size.

    Raises:
        ValueError: below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    return batch_size


def known_dtype(dtype: str) -> str:
    """The name of a dtype.

    Raises:
        ValueError: an unknown one.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


def device_or_gpu(device: str | None) -> str:
    """The given device, or a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
