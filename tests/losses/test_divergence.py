"""f-DPO: limits of the alpha-divergence, order and slope beyond the largest exponent. Its values: test_pairwise."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt import losses
from tests.losses.pairs import grid

torch.set_num_threads(1)


def test_alpha_divergence_lies_between_its_limits() -> None:
    chosen, rejected = grid([-2.0, 0.3, 1.0])
    near = losses.f_dpo_loss(chosen, rejected, divergence="alpha", alpha=1e-6)
    torch.testing.assert_close(near, losses.dpo_loss(chosen, rejected), atol=1e-6, rtol=0)
    far = losses.f_dpo_loss(chosen, rejected, divergence="alpha", alpha=1 - 1e-9)
    torch.testing.assert_close(far, losses.f_dpo_loss(chosen, rejected, divergence="forward_kl"), atol=1e-7, rtol=0)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_beyond_the_exponent_the_order_and_the_slope_survive(divergence: str) -> None:
    chosen = torch.tensor([-500.0, -400.0, -1e4], requires_grad=True)
    rejected = torch.tensor([-400.0, -500.0, 0.0])
    out = losses.f_dpo_loss(chosen, rejected, beta=0.1, divergence=divergence)
    assert out[0] > out[1]
    out.sum().backward()
    assert chosen.grad is not None
    assert (chosen.grad[[0, 2]] < 0).all()
