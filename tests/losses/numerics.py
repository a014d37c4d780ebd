"""What every loss is tested for: hand-derived values, derivatives by differences, finite extremes."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
import torch
from torch import Tensor

from tests.losses.pairs import CHOSEN, REJECTED

F64 = torch.float64
W, L = torch.tensor(CHOSEN, dtype=F64), torch.tensor(REJECTED, dtype=F64)
extremes = pytest.mark.parametrize(
    ("dtype", "extreme"), [(torch.float32, 1e4), (torch.bfloat16, 500.0)], ids=["fp32", "bf16"]
)


def close(out: Tensor, *values: float, atol: float = 2e-6) -> None:
    torch.testing.assert_close(out, torch.tensor(values, dtype=F64), atol=atol, rtol=0)


def check_derivatives(loss: Callable[..., Tensor], count: int, stopped: Collection[int] = ()) -> None:
    """First and second derivatives of a loss of `count` arguments (B,) by differences.

    `stopped`: arguments behind a stop-gradient, which differences would see.
    """
    g = torch.Generator().manual_seed(3)
    values = [torch.randn(3, generator=g, dtype=F64) for _ in range(count)]
    for i in set(range(count)) - set(stopped):
        values[i].requires_grad_()
    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values)


def check_extremes(loss: Callable[..., Tensor], count: int, dtype: torch.dtype, extreme: float) -> None:
    """Value and gradient are finite, and float32, for every combination of signs."""
    for signs in range(2**count):
        values = [
            torch.tensor([extreme if signs >> i & 1 else -extreme]).to(dtype).requires_grad_() for i in range(count)
        ]
        out = loss(*values)
        gradients = torch.autograd.grad(out.sum(), values, allow_unused=True)
        assert torch.isfinite(out).all()
        assert out.dtype == torch.float32
        assert all(g is None or torch.isfinite(g).all() for g in gradients)
