"""Losses of groups: values, special cases, padding, derivatives, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pl_prefopt import losses
from tests.oracles import formulas

torch.set_num_threads(1)
F64 = torch.float64
RELEVANCE = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 3.0, 1.0, 2.0]], dtype=F64)
RANKS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 1.0, 3.0]], dtype=F64)
ORDER = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 4.0, 2.0, 3.0]], dtype=F64)
TARGETS = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.0, 0.0, 1.0, 0.0]], dtype=F64)


def double(*values: float) -> Tensor:
    return torch.tensor([values], dtype=F64)


def close(out: Tensor, *values: float, atol: float = 1e-12) -> None:
    torch.testing.assert_close(out, torch.tensor(values, dtype=F64), atol=atol, rtol=1e-12)


def _softmax_dpo(r: Tensor, mask: Tensor | None = None, beta: float = 0.3) -> Tensor:
    return losses.softmax_dpo_loss(r[:, 0], r[:, 1:], beta=beta, mask=None if mask is None else mask[:, 1:])


def _adpo(r: Tensor, mask: Tensor | None = None) -> Tensor:
    real = torch.ones_like(r, dtype=torch.bool) if mask is None else mask
    q = TARGETS[: len(r), : r.shape[1]].to(r) * real
    return losses.adpo_listwise_loss(r, q / q.sum(-1, keepdim=True), tau=0.8, mask=mask)


def _irpo(r: Tensor, mask: Tensor | None = None, opponents: str = "sum", items: str = "sum") -> Tensor:
    k = slice(0, r.shape[1])
    return losses.irpo_loss(
        r, RELEVANCE[: len(r), k], RANKS[: len(r), k], beta=0.3, mask=mask, opponents=opponents, items=items
    )


def _plackett_luce(r: Tensor, mask: Tensor | None = None) -> Tensor:
    return losses.plackett_luce_loss(r, ORDER[: len(r), : r.shape[1]], mask=mask)


FAMILY: dict[str, Callable[..., Tensor]] = {
    "softmax_dpo": _softmax_dpo,
    "adpo": _adpo,
    "irpo": _irpo,
    "irpo-official": partial(_irpo, opponents="mean", items="mean"),
    "plackett_luce": _plackett_luce,
}
each = pytest.mark.parametrize("loss", FAMILY.values(), ids=FAMILY)


def draws(seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(2, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_softmax_dpo_by_hand() -> None:
    # 1 + e^{ln 2} + e^0 = 4
    close(losses.softmax_dpo_loss(double(0.0)[0], double(math.log(2), 0.0), beta=1.0), math.log(4))


def test_plackett_luce_by_hand() -> None:
    # strengths 3, 2, 1 drawn in this order: 3/6 * 2/3 = 1/3, two draws
    close(losses.plackett_luce_loss(double(0.0, math.log(3), math.log(2)), double(-1.0, 9.0, 2.0)), math.log(3) / 2)


def test_irpo_by_hand() -> None:
    # gains 3 and 1, discounts log2(2) = 1 and log2(4) = 2; item 1 against 2 + 1, item 2 against 1/2 + 1/2
    r = double(0.0, math.log(2), 0.0)
    out = losses.irpo_loss(r, double(2.0, 1.0, 0.0), double(1.0, 3.0, 2.0), beta=1.0)
    close(out, 3 * math.log(1 + 3) + 0.5 * math.log(1 + 1))


def test_adpo_by_hand() -> None:
    # the policy already states the target: the loss is the target's entropy
    close(
        losses.adpo_listwise_loss(double(2 * math.log(2), 0.0, 0.0), double(0.5, 0.25, 0.25), tau=2.0),
        1.5 * math.log(2),
    )


@pytest.mark.parametrize("seed", range(3))
def test_printed_formulas(seed: int) -> None:
    r = draws(seed)
    rows = r.tolist()
    close(_softmax_dpo(r), *(float(formulas.softmax_dpo(x[0], x[1:], beta=0.3)) for x in rows))
    close(_plackett_luce(r), *(float(formulas.plackett_luce(x, o)) for x, o in zip(rows, ORDER.tolist(), strict=True)))
    close(_adpo(r), *(float(formulas.adpo_list(x, q, tau=0.8)) for x, q in zip(rows, TARGETS.tolist(), strict=True)))


@pytest.mark.parametrize("opponents", ["sum", "mean"])
@pytest.mark.parametrize("items", ["sum", "mean"])
def test_the_printed_formula_of_irpo(opponents: str, items: str) -> None:
    r = draws(3)
    rows = zip(r.tolist(), RELEVANCE.tolist(), RANKS.tolist(), strict=True)
    want = [float(formulas.irpo(x, v, k, beta=0.3, opponents=opponents, items=items)) for x, v, k in rows]
    close(_irpo(r, opponents=opponents, items=items), *want)


@each
def test_padding_changes_nothing(loss: Callable[..., Tensor]) -> None:
    r = draws(4)
    mask = torch.tensor([[True, True, True, False], [True, True, True, False]])
    alone, padded = loss(r[:, :3].clone(), mask[:, :3]), r.clone().requires_grad_()
    for filler in (0.0, 1e6, -1e6):
        with torch.no_grad():
            padded[:, 3] = filler
        out = loss(padded, mask)
        torch.testing.assert_close(out, alone, atol=1e-12, rtol=0)
        (gradient,) = torch.autograd.grad(out.sum(), padded)
        assert (gradient[:, 3] == 0).all()
        assert (gradient[:, :3] != 0).any()


@each
def test_a_constant_on_the_whole_group_changes_nothing(loss: Callable[..., Tensor]) -> None:
    torch.testing.assert_close(loss(draws() + 3.5), loss(draws()), atol=1e-12, rtol=0)


@each
def test_derivatives(loss: Callable[..., Tensor]) -> None:
    r = draws(5).requires_grad_()
    assert torch.autograd.gradcheck(loss, r)
    assert torch.autograd.gradgradcheck(loss, r)
    ragged = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert torch.autograd.gradcheck(lambda v: loss(v, ragged), r)
    assert torch.autograd.gradgradcheck(lambda v: loss(v, ragged), r)


@each
@pytest.mark.parametrize(("dtype", "extreme"), [(torch.float32, 1e4), (torch.bfloat16, 500.0)], ids=["fp32", "bf16"])
def test_finite_at_extremes(loss: Callable[..., Tensor], dtype: torch.dtype, extreme: float) -> None:
    r = torch.tensor([[extreme, -extreme, 0.0, extreme], [-extreme, extreme, 1.0, 0.0]]).to(dtype).requires_grad_()
    ragged = torch.tensor([[True, True, True, False], [True, True, True, True]])
    for mask in (None, ragged):
        out = loss(r, mask)
        assert torch.isfinite(out).all()
        (gradient,) = torch.autograd.grad(out.sum(), r)
        assert torch.isfinite(gradient).all()


def test_one_opponent_is_dpo() -> None:
    r = draws()
    dpo = losses.dpo_loss(r[:, 0], r[:, 1], beta=0.3)
    torch.testing.assert_close(_softmax_dpo(r[:, :2]), dpo, atol=1e-12, rtol=0)
    hard = double(1.0, 0.0).expand(2, 2)
    torch.testing.assert_close(losses.adpo_listwise_loss(r[:, :2], hard, tau=1 / 0.3), dpo, atol=1e-12, rtol=0)
    torch.testing.assert_close(losses.plackett_luce_loss(0.3 * r[:, :2], hard), dpo, atol=1e-12, rtol=0)
    one = losses.irpo_loss(r[:, :2], hard, torch.ones_like(hard), beta=0.3)
    torch.testing.assert_close(one, dpo, atol=1e-12, rtol=0)


def test_one_relevant_item_is_s_dpo_and_opponents_shift_by_their_count() -> None:
    r, one = draws(), double(1.0, 0.0, 0.0, 0.0).expand(2, 4)
    irpo = losses.irpo_loss(r, one, torch.ones_like(r), beta=0.3)
    torch.testing.assert_close(irpo, _softmax_dpo(r), atol=1e-12, rtol=0)
    mean = losses.irpo_loss(r, one, torch.ones_like(r), beta=0.3, opponents="mean")
    shifted = r.clone()
    shifted[:, 0] += math.log(3) / 0.3
    torch.testing.assert_close(mean, _softmax_dpo(shifted), atol=1e-12, rtol=0)


def test_values_at_the_anchor() -> None:
    zero = torch.zeros(2, 4, dtype=F64)
    close(_adpo(zero), math.log(4), math.log(4))
    close(_softmax_dpo(zero), math.log(4), math.log(4))
    close(_plackett_luce(zero), math.log(24) / 3, math.log(24) / 3)


def test_the_gradient_of_adpo_at_the_anchor() -> None:
    r = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    losses.adpo_listwise_loss(r, TARGETS, tau=0.5).sum().backward()
    torch.testing.assert_close(r.grad, (0.25 - TARGETS) / 0.5, atol=1e-12, rtol=0)


def test_irrelevant_items_are_only_opponents() -> None:
    r = draws()
    none = losses.irpo_loss(r, torch.zeros_like(r), RANKS)
    close(none, 0.0, 0.0)
    louder = r.clone()
    louder[0, 2] += 1.0
    assert float(_irpo(louder)[0]) > float(_irpo(r)[0])


def test_equal_relevance_keeps_the_given_order() -> None:
    r = draws()
    same = losses.plackett_luce_loss(r, torch.zeros_like(r))
    falling = losses.plackett_luce_loss(r, double(4.0, 3.0, 2.0, 1.0).expand(2, 4))
    torch.testing.assert_close(same, falling, atol=0, rtol=0)
