"""Numerics that every loss shares."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to the last digit; torch's own returns x beyond 20, which is 2e-9 off and has a flat slope there."""
    return -logsigmoid(-x)


def wide(value: Tensor) -> Tensor:
    """Compute half-precision input in float32."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
