"""TDPO and LD-DPO: values, stop-gradients, padding, derivatives, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pl_prefopt import losses
from tests.losses.numerics import F64, L, W, check_derivatives, check_extremes, close, extremes

torch.set_num_threads(1)
KL_W, KL_L = torch.tensor([1.0, 2.0, 0.5], dtype=F64), torch.tensor([1.5, 1.0, 2.0], dtype=F64)
Case = tuple[Callable[..., Tensor], int, list[int]]
CASES: dict[str, Case] = {
    "tdpo1": (partial(losses.tdpo_loss, variant="tdpo1"), 4, []),
    "tdpo2": (partial(losses.tdpo_loss, variant="tdpo2"), 4, [2]),
}  # fmt: skip
"""Name -> (loss, number of arguments, arguments behind a stop-gradient)."""


def test_tdpo_by_hand() -> None:
    # 1.5 - .25 = 1.25, -1.5 + .5 = -1, 2 - .75 = 1.25
    close(losses.tdpo_loss(W, L, KL_W, KL_L, beta=0.1, alpha=0.5), 0.632599, 0.744397, 0.632599)
    # 1.5 - .5 = 1, -1.5 + 1 = -.5, 2 - 1.5 = .5
    close(losses.tdpo_loss(W, L, KL_W, KL_L, beta=0.1, variant="tdpo1"), 0.644397, 0.718460, 0.668460)


def test_tdpo_stops_the_gradient_on_the_chosen_side_only() -> None:
    def gradients(variant: str) -> tuple[Tensor | None, Tensor | None]:
        kl = [KL_W.clone().requires_grad_(), KL_L.clone().requires_grad_()]
        out = losses.tdpo_loss(W, L, *kl, beta=0.1, alpha=0.5, variant=variant)
        first, second = torch.autograd.grad(out.sum(), kl, allow_unused=True)
        return first, second

    chosen, rejected = gradients("tdpo2")
    assert chosen is None
    assert rejected is not None
    # alpha beta sigmoid(-margin), margins .125, -.1, .125
    close(rejected, *(0.05 / (1 + math.exp(m)) for m in (0.125, -0.1, 0.125)), atol=1e-12)
    chosen, rejected = gradients("tdpo1")
    assert chosen is not None
    assert rejected is not None
    torch.testing.assert_close(chosen, -rejected, atol=0, rtol=0)


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_tdpo_without_drift_is_dpo(variant: str) -> None:
    out = losses.tdpo_loss(W, L, KL_W, KL_W, beta=0.4, variant=variant)
    torch.testing.assert_close(out, losses.dpo_loss(W, L, beta=0.4), atol=1e-12, rtol=0)


def test_length_desensitized_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], dtype=F64)
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    out = losses.length_desensitized_sum(values, mask, torch.tensor([1, 2]), alpha=0.5)
    close(out, 2 + (3 + 4) / 2, 3.0, atol=0)


def test_a_tail_weight_that_float32_cannot_hold_keeps_its_digits() -> None:
    values, mask = torch.tensor([[1.0, 1.0]], dtype=F64), torch.ones(1, 2, dtype=torch.bool)
    out = losses.length_desensitized_sum(values, mask, torch.tensor([1]), alpha=0.3)
    close(out, 1.3, atol=1e-15)


def test_length_desensitized_counts_inside_the_mask() -> None:
    values = torch.randn(1, 5, dtype=F64)
    mask, shared = torch.ones(1, 5, dtype=torch.bool), torch.tensor([2])
    plain = losses.length_desensitized_sum(values, mask, shared, alpha=0.3)
    for before, after in ((4, 0), (0, 3), (2, 2)):
        pad = torch.full((1, before), 7.0, dtype=F64), torch.full((1, after), float("nan"), dtype=F64)
        wide_mask = torch.cat([pad[0] < 0, mask, pad[1] < 0], 1)
        wide = torch.cat([pad[0], values, pad[1]], 1)
        out = losses.length_desensitized_sum(wide, wide_mask, shared, alpha=0.3)
        torch.testing.assert_close(out, plain, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        losses.length_desensitized_sum(values, mask, shared, alpha=1.0), values.sum(1), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        losses.length_desensitized_sum(values, mask, shared, alpha=0.0), values[:, :2].sum(1), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name: str) -> None:
    check_derivatives(*CASES[name])


@pytest.mark.parametrize("name", CASES)
@extremes
def test_finite_at_extremes(name: str, dtype: torch.dtype, extreme: float) -> None:
    loss, count, *_ = CASES[name]
    check_extremes(loss, count, dtype, extreme)
