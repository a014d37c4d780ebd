"""Losses of two log-ratios: values, derivatives, identities, extremes."""

from __future__ import annotations

import math

import pytest
import torch
from mpmath import mpf

from pl_prefopt import losses
from pl_prefopt.losses.divergence import MAX_EXPONENT
from tests.losses.pairs import AT_ZERO, CHOSEN, IDS, PAIRS, REJECTED, Pair, grid

torch.set_num_threads(1)
F64 = torch.float64
EXTREME = [1e4, -1e4, 500.0, 0.0]
each = pytest.mark.parametrize("case", PAIRS, ids=IDS)


@each
def test_hand_derived_rows(case: Pair) -> None:
    out = case(torch.tensor(CHOSEN, dtype=F64), torch.tensor(REJECTED, dtype=F64))
    torch.testing.assert_close(out, torch.tensor(case.rows, dtype=F64), atol=2e-6, rtol=0)


@each
def test_the_printed_formula_in_sixty_digits(case: Pair) -> None:
    chosen, rejected = grid(
        [-37.0, -3.3, 0.0, 0.7, 26.0] if "f_dpo" in case.name else [-1e4, -250.5, -3.3, 0.7, 400.0, 1e4]
    )
    want = [
        float(case.formula(mpf(w), mpf(low), **case.options))
        for w, low in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]
    inside = torch.ones_like(chosen, dtype=torch.bool)
    if case.name in ("f_dpo-forward_kl", "f_dpo-alpha"):
        rate = 1.0 if "forward" in case.name else 0.5
        inside = (-rate * torch.minimum(chosen, rejected)) <= MAX_EXPONENT
        assert inside.sum() >= 16
    torch.testing.assert_close(
        case(chosen, rejected)[inside], torch.tensor(want, dtype=F64)[inside], atol=1e-12, rtol=1e-12
    )


@each
def test_the_value_at_zero(case: Pair) -> None:
    zero = torch.zeros(3, dtype=F64)
    want = torch.full_like(zero, AT_ZERO.get(case.name, math.log(2)))
    torch.testing.assert_close(case(zero, zero), want, atol=1e-6, rtol=0)


@each
def test_first_and_second_derivatives(case: Pair) -> None:
    torch.manual_seed(0)
    pair = [torch.randn(5, dtype=F64).mul(3).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(case, pair)
    assert torch.autograd.gradgradcheck(case, pair)


@each
@pytest.mark.parametrize(
    ("dtype", "extreme"),
    [(torch.float32, 1e4), (torch.float64, 1e4), (torch.bfloat16, 500.0)],
    ids=["fp32", "fp64", "bf16"],
)
def test_value_and_derivatives_are_finite_at_extremes(case: Pair, dtype: torch.dtype, extreme: float) -> None:
    values = torch.tensor([[w, low] for w in (extreme, -extreme, 0.0) for low in (extreme, -extreme, 0.0)]).to(dtype)
    pair = [values[:, 0].clone().requires_grad_(), values[:, 1].clone().requires_grad_()]
    out = case(*pair)
    assert torch.isfinite(out).all()
    first = torch.autograd.grad(out.sum(), pair, create_graph=True)
    assert all(torch.isfinite(g).all() and g.dtype == dtype for g in first)
    if any(g.requires_grad for g in first):
        second = torch.autograd.grad(torch.stack(first).sum(), pair, allow_unused=True)
        assert all(g is None or torch.isfinite(g).all() for g in second)


@each
def test_dtype_of_the_result(case: Pair) -> None:
    chosen, rejected = torch.tensor(CHOSEN), torch.tensor(REJECTED)
    for given, expected in ((F64, F64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        out = case(chosen.to(given), rejected.to(given))
        assert out.dtype == expected
        assert out.shape == (3,)
        torch.testing.assert_close(out, torch.tensor(case.rows).to(expected), atol=5e-6, rtol=1e-6)


@each
def test_rows_do_not_see_each_other(case: Pair) -> None:
    torch.manual_seed(1)
    chosen, rejected = torch.randn(2, 6, dtype=F64)
    order = torch.randperm(6)
    torch.testing.assert_close(case(chosen[order], rejected[order]), case(chosen, rejected)[order], atol=0, rtol=0)


SHIFT = {"dpo", "cdpo", "dpo-margin", "ipo", "hinge", "robust", "exo", "discopop", "f_dpo-reverse_kl", "adpo"}


@each
def test_who_depends_on_the_margin_alone(case: Pair) -> None:
    chosen, rejected = torch.tensor([0.3, -1.0, -2.0], dtype=F64), torch.tensor([-0.5, 0.5, -1.0], dtype=F64)
    same = torch.allclose(case(chosen, rejected), case(chosen + 1.75, rejected + 1.75), atol=1e-12)
    assert same == (case.name in SHIFT)


def test_a_pair_and_its_mirror_are_the_two_outcomes_of_one_coin() -> None:
    chosen, rejected = grid([-8.0, -0.3, 0.0, 2.0])
    both = [torch.exp(-losses.dpo_loss(*p, beta=0.7)) for p in ((chosen, rejected), (rejected, chosen))]
    torch.testing.assert_close(both[0] + both[1], torch.ones_like(chosen), atol=1e-12, rtol=0)


def test_the_gradient_of_dpo_is_the_probability_of_the_wrong_order() -> None:
    chosen, rejected = (v.requires_grad_() for v in torch.tensor([[0.4, -3.0], [1.0, 2.5]], dtype=F64).unbind(1))
    losses.dpo_loss(chosen, rejected, beta=0.3).sum().backward()
    wrong = 0.3 / (1 + torch.exp(0.3 * (chosen - rejected))).detach()
    torch.testing.assert_close(chosen.grad, -wrong, atol=1e-12, rtol=0)
    torch.testing.assert_close(rejected.grad, wrong, atol=1e-12, rtol=0)


def test_smoothed_labels_average_the_two_orders() -> None:
    chosen, rejected = grid([-8.0, -0.3, 2.0])
    smooth = losses.dpo_loss(chosen, rejected, label_smoothing=0.3)
    parts = 0.7 * losses.dpo_loss(chosen, rejected) + 0.3 * losses.dpo_loss(rejected, chosen)
    torch.testing.assert_close(smooth, parts, atol=1e-12, rtol=0)
    per_pair = torch.linspace(0, 1, 9, dtype=F64)
    soft = losses.adpo_pairwise_loss(chosen, rejected, preference_prob=1 - per_pair)
    torch.testing.assert_close(losses.dpo_loss(chosen, rejected, label_smoothing=per_pair), soft, atol=1e-12, rtol=0)


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    chosen, rejected = grid([-8.0, -0.3, 2.0])
    noisy = 0.8 * losses.robust_dpo_loss(chosen, rejected, label_smoothing=0.2) + 0.2 * losses.robust_dpo_loss(
        rejected, chosen, label_smoothing=0.2
    )
    torch.testing.assert_close(noisy, losses.dpo_loss(chosen, rejected), atol=1e-12, rtol=0)


def test_exo_vanishes_where_the_policy_states_the_smoothed_label() -> None:
    margin = torch.tensor([math.log(0.9 / 0.1) / 0.1], dtype=F64)
    loss = losses.exo_loss(margin, torch.zeros(1, dtype=F64), beta=0.1, label_smoothing=0.1)
    torch.testing.assert_close(loss, torch.zeros(1, dtype=F64), atol=1e-12, rtol=0)


def test_per_pair_margins() -> None:
    chosen, rejected = torch.tensor(CHOSEN, dtype=F64), torch.tensor(REJECTED, dtype=F64)
    margins = torch.tensor([0.0, 0.05, 0.2], dtype=F64)
    out = losses.dpo_loss(chosen, rejected, margin=margins)
    # l(.15), l(-.2), l(0)
    torch.testing.assert_close(out, torch.tensor([0.620957, 0.798139, 0.693147], dtype=F64), atol=2e-6, rtol=0)


@pytest.mark.parametrize("x", [19.9, 20.1, 25.0, -20.1])
def test_no_digit_is_lost_where_the_sigmoid_saturates(x: float) -> None:
    margin = torch.tensor([-x], dtype=F64, requires_grad=True)
    loss = losses.dpo_loss(margin, torch.zeros(1, dtype=F64), beta=1.0)
    torch.testing.assert_close(
        loss, torch.tensor([math.log1p(math.exp(-abs(x))) + max(x, 0.0)], dtype=F64), atol=0, rtol=1e-15
    )
    (slope,) = torch.autograd.grad(loss.sum(), margin)
    torch.testing.assert_close(slope, torch.tensor([-1 / (1 + math.exp(-x))], dtype=F64), atol=0, rtol=1e-15)
