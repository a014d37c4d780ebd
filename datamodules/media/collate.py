"""Rows to a batch: tensors stacked, numbers as float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def collate(rows: Sequence[dict[str, Any]], media: str) -> dict[str, Any]:
    """Stack rows: tensors as they are, numbers as (B,) or (B, 2) float32, `index` (B,) int64, `caption` a list of str.

    Args:
        rows: rows of `MediaPairs`.
        media: name of the decoded media, which like latents are never padded.

    Raises:
        ValueError: media of different sizes, or other tensors of different shapes without a mask.
    """
    batch: dict[str, Any] = {"caption": [r["caption"] for r in rows], "index": torch.tensor([r["index"] for r in rows])}
    masked = any(isinstance(value, Tensor) and value.dtype == torch.bool for value in rows[0].values())
    for name in sorted(rows[0].keys() - batch.keys()):
        values = [r[name] for r in rows]
        if isinstance(values[0], Tensor):
            batch[name] = stack(name, values, masked=masked and name != media and not name.startswith("latents_"))
        else:
            batch[name] = torch.tensor(values, dtype=torch.float32)
    return batch


def stack(name: str, tensors: Sequence[Tensor], *, masked: bool) -> Tensor:
    """Stack tensors; where shapes differ, pad at the end by 0 (in a mask: False).

    Args:
        name: name for the message.
        tensors: tensors of equal numbers of dimensions.
        masked: whether a boolean mask comes with them, so that padding can be told from values.

    Raises:
        ValueError: shapes differ and there is no mask.
    """
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) == 1:
        return torch.stack(list(tensors))
    if not masked:
        raise ValueError(
            f"{name} must have one shape in all rows of a batch, got {sorted(shapes)}. Return a boolean mask beside it "
            "from encode_text, give all media one size, or put sizes into buckets."
        )
    padded = tensors[0].new_zeros((len(tensors), *map(max, zip(*shapes, strict=True))))
    for row, tensor in zip(padded, tensors, strict=True):
        row[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return padded
