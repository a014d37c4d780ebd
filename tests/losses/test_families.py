"""Token-level, reference-free, multi-objective, two-adapter and diffusion losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mpmath import mpf
from torch import Tensor

from pl_prefopt import losses
from tests.losses.pairs import CHOSEN, REJECTED
from tests.oracles import formulas

torch.set_num_threads(1)
F64 = torch.float64
W, L = torch.tensor(CHOSEN, dtype=F64), torch.tensor(REJECTED, dtype=F64)
KL_W, KL_L = torch.tensor([1.0, 2.0, 0.5], dtype=F64), torch.tensor([1.5, 1.0, 2.0], dtype=F64)
M_W, M_L = torch.tensor([[0.2], [-0.1], [0.3]], dtype=F64), torch.tensor([[-0.2], [0.4], [0.1]], dtype=F64)
MEANS_W = torch.tensor([1 / 2, 1 / 3, 3 / 4], dtype=F64).log()
MEANS_L = torch.tensor([1 / 3, 1 / 2, 1 / 2], dtype=F64).log()


def close(out: Tensor, *values: float, atol: float = 2e-6) -> None:
    torch.testing.assert_close(out, torch.tensor(values, dtype=F64), atol=atol, rtol=0)


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


def test_simpo_by_hand() -> None:
    w, low = torch.tensor([-1.0, -2.0, -0.5], dtype=F64), torch.tensor([-1.5, -1.0, -2.0], dtype=F64)
    # 2 * .5 - .5 = .5, -2 - .5 = -2.5, 3 - .5 = 2.5
    close(losses.simpo_loss(w, low, beta=2.0, gamma=0.5), 0.474077, 2.578890, 0.078890)


def test_orpo_by_hand() -> None:
    # odds 1 : 1/2, 1/2 : 1, 3 : 1, so l = ln 3/2, ln 3, ln 4/3; likelihood terms ln 2, ln 3, ln 4/3
    want = [math.log(2) + 0.1 * math.log(1.5), 1.1 * math.log(3), 1.1 * math.log(4 / 3)]
    close(losses.orpo_loss(MEANS_W, MEANS_L, beta=0.1), *want, atol=1e-12)


@pytest.mark.parametrize("mean", [-1e4, -40.0, -1.0, -1e-3, -1e-8, -1e-12])
def test_orpo_keeps_its_digits_near_both_ends(mean: float) -> None:
    one, other = torch.tensor([mean], dtype=F64), torch.tensor([-0.5], dtype=F64)
    for pair in ((one, other), (other, one)):
        want = float(formulas.orpo(*(mpf(float(v)) for v in pair), beta=0.1))
        torch.testing.assert_close(losses.orpo_loss(*pair), torch.tensor([want], dtype=F64), atol=0, rtol=1e-13)


def test_orpo_at_probability_one_is_finite() -> None:
    pair = [torch.tensor([0.0, -1.0, 0.0], requires_grad=True), torch.tensor([-1.0, 0.0, 0.0], requires_grad=True)]
    out = losses.orpo_loss(*pair)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in pair)


def test_modpo_by_hand() -> None:
    # R_w - R_l = 2 [x - (m_w - m_l)/2] = .3 - .4, -.3 + .5, .4 - .2
    out = losses.modpo_loss(W, L, M_W, M_L, weights=torch.tensor([0.5, 0.5]), beta=0.1)
    close(out, 0.744397, 0.598139, 0.598139)


def test_modpo_with_three_objectives() -> None:
    g = torch.Generator().manual_seed(0)
    m_w, m_l = torch.randn(2, 3, 2, generator=g, dtype=F64)
    weights = [0.5, 0.2, 0.3]
    rows = zip(CHOSEN, REJECTED, m_w.tolist(), m_l.tolist(), strict=True)
    want = [float(formulas.modpo(*row, weights=weights, beta=0.1)) for row in rows]
    close(losses.modpo_loss(W, L, m_w, m_l, weights=torch.tensor(weights, dtype=F64), beta=0.1), *want, atol=1e-12)
    moved = losses.modpo_loss(W, L, m_w + 3, m_l + 3, weights=torch.tensor(weights, dtype=F64), beta=0.1)
    close(moved, *want, atol=1e-12)


def test_modpo_with_one_weight_is_dpo() -> None:
    none = torch.zeros(3, 0, dtype=F64)
    out = losses.modpo_loss(W, L, none, none, weights=torch.ones(1), beta=0.1)
    torch.testing.assert_close(out, losses.dpo_loss(W, L), atol=1e-12, rtol=0)


def test_fast_slow_by_hand() -> None:
    # z_F = 1.5, z_S = -1.5: fast l(.15) + l(.3)/2, slow l(-.15) - l(.3)/2
    fast, slow = losses.fast_slow_loss(W[:1], L[:1], L[:1], W[:1], beta=0.1, alpha=0.5)
    close(fast, 0.620957 + 0.554355 / 2)
    close(slow, 0.770957 - 0.554355 / 2)


def test_fast_slow_identities() -> None:
    fast, slow = losses.fast_slow_loss(W, L, L, W, beta=0.3, alpha=0.0)
    torch.testing.assert_close(fast, losses.dpo_loss(W, L, beta=0.3), atol=1e-12, rtol=0)
    torch.testing.assert_close(slow, losses.dpo_loss(L, W, beta=0.3), atol=1e-12, rtol=0)
    fast, slow = losses.fast_slow_loss(W, L, W, L, beta=0.3, alpha=0.2)
    base = losses.dpo_loss(W, L, beta=0.3)
    torch.testing.assert_close(fast - base, torch.full_like(base, 0.2 * math.log(2)), atol=1e-12, rtol=0)
    torch.testing.assert_close(base - slow, torch.full_like(base, 0.2 * math.log(2)), atol=1e-12, rtol=0)


def test_fast_and_slow_each_learn_from_their_own_loss_and_both_grow_their_margin() -> None:
    sides = [v.clone().requires_grad_() for v in (W, L, L, W)]
    fast, slow = losses.fast_slow_loss(*sides, beta=0.1, alpha=0.5)
    for loss, own, other in ((fast, sides[:2], sides[2:]), (slow, sides[2:], sides[:2])):
        gradients = torch.autograd.grad(loss.sum(), own + other, allow_unused=True)
        assert gradients[2] is None
        assert gradients[3] is None
        assert gradients[0] is not None
        assert (gradients[0] < 0).all()


def test_fast_slow_is_bounded_by_the_clamp() -> None:
    far = torch.tensor([1e4], dtype=F64, requires_grad=True)
    zero = torch.zeros(1, dtype=F64)
    fast, slow = losses.fast_slow_loss(far, zero, zero, far, beta=1.0, alpha=1.0, clamp=10.0)
    assert float(fast.detach()) < 1e-3
    assert 9.9 < float(slow.detach()) < 10.1
    (gradient,) = torch.autograd.grad(fast.sum(), far)
    assert float(gradient) == 0.0


def test_diffusion_by_hand() -> None:
    policy, reference = torch.tensor([0.3, 0.9], dtype=F64), torch.tensor([0.5, 0.4], dtype=F64)
    close(losses.denoising_logratios(policy, reference), 0.1, -0.25, atol=1e-12)
    # -10/2 [(.3 - .5) - (.4 - .4)] = 1
    errors = [torch.tensor([v], dtype=F64) for v in (0.3, 0.5, 0.4, 0.4)]
    close(losses.diffusion_dpo_loss(*errors, beta=10.0), math.log(1 + math.exp(-1)), atol=1e-12)


def test_diffusion_identities() -> None:
    g = torch.Generator().manual_seed(0)
    w, low, rw, rl = (v.requires_grad_() for v in torch.rand(4, 6, generator=g, dtype=F64))
    loss = losses.diffusion_dpo_loss(w, low, rw, rl, beta=200.0)
    # the released code's form
    inside = -0.5 * 200.0 * ((w - low) - (rw - rl))
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(inside), atol=1e-12, rtol=0)
    up, down = torch.autograd.grad(loss.sum(), [w, low])
    assert (up > 0).all()
    assert (down < 0).all()
    same = losses.diffusion_dpo_loss(w, low, w, low)
    torch.testing.assert_close(same, torch.full_like(same, math.log(2)), atol=1e-12, rtol=0)


def test_ddo_by_hand() -> None:
    real, fake = torch.tensor([1.0], dtype=F64), torch.tensor([-0.5], dtype=F64)
    close(losses.ddo_loss(real, fake, alpha=2.0, beta=0.1), 0.644397 + 2 * 0.668460)
    close(
        losses.ddo_loss(real, fake, alpha=2.0, beta=0.1),
        float(formulas.ddo(1, mpf(-0.5), alpha=2.0, beta=0.1)),
        atol=1e-12,
    )


Case = tuple[Callable[..., Tensor], int, dict[str, Any]]
REST: dict[str, Case] = {
    "tdpo1": (losses.tdpo_loss, 4, {"variant": "tdpo1"}),
    "tdpo2": (losses.tdpo_loss, 4, {"variant": "tdpo2"}),
    "simpo": (losses.simpo_loss, 2, {}),
    "ddo": (losses.ddo_loss, 2, {"beta": 0.1}),
    "diffusion": (losses.diffusion_dpo_loss, 4, {"beta": 3.0}),
    "modpo": (
        lambda w, low, a, b: losses.modpo_loss(w, low, a[:, None], b[:, None], weights=torch.tensor([0.5, 0.5])), 4, {},
    ),
    "fast": (lambda *x: losses.fast_slow_loss(*x)[0], 4, {}),
    "slow": (lambda *x: losses.fast_slow_loss(*x)[1], 4, {}),
    "orpo": (lambda w, low: losses.orpo_loss(-w.abs() - 0.01, -low.abs() - 0.01), 2, {}),
}  # fmt: skip
each = pytest.mark.parametrize("case", REST.values(), ids=REST)


STOPPED = {"tdpo2": [2], "fast": [2, 3], "slow": [0, 1]}
"""Arguments behind a stop-gradient: numerical differentiation would see them."""


@pytest.mark.parametrize("name", REST)
def test_derivatives(name: str) -> None:
    loss, count, options = REST[name]
    g = torch.Generator().manual_seed(3)
    values = [torch.randn(3, generator=g, dtype=F64) for _ in range(count)]
    for i in set(range(count)) - set(STOPPED.get(name, [])):
        values[i].requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: loss(*x, **options), values)
    assert torch.autograd.gradgradcheck(lambda *x: loss(*x, **options), values)


@each
@pytest.mark.parametrize(("dtype", "extreme"), [(torch.float32, 1e4), (torch.bfloat16, 500.0)], ids=["fp32", "bf16"])
def test_finite_at_extremes(case: Case, dtype: torch.dtype, extreme: float) -> None:
    loss, count, options = case
    for flip in range(2**count):
        values = [
            torch.tensor([extreme if flip >> i & 1 else -extreme]).to(dtype).requires_grad_() for i in range(count)
        ]
        out = loss(*values, **options)
        gradients = torch.autograd.grad(out.sum(), values, allow_unused=True)
        assert torch.isfinite(out).all()
        assert out.dtype == torch.float32
        assert all(g is None or torch.isfinite(g).all() for g in gradients)
