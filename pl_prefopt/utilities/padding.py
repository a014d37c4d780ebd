"""Sequences of unequal length as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pad_right(sequences: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Pad integer sequences to the longest one: ids (N, T) int64 and mask (N, T) bool, True at real entries."""
    longest = max(map(len, sequences), default=0)
    ids = np.full((len(sequences), longest), value, np.int64)
    mask = np.zeros((len(sequences), longest), bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)
