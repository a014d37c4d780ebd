"""Token log-probabilities against the textbook formula, with gradients, in every block size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pl_prefopt.logprobs import Head, score_tokens, token_log_probs

PLANS = [
    {},
    {"chunk_size": 3},
    {"chunk_size": 3, "vocab_chunk_size": 4},
    {"chunk_size": 4, "vocab_chunk_size": 5, "softcap": 2.0, "scale": 0.7},
    {"softcap": 2.0},
]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    h = torch.randn(2, 5, 6, dtype=dtype, generator=g, requires_grad=True)
    w = torch.randn(11, 6, dtype=dtype, generator=g, requires_grad=True)
    b = torch.randn(11, dtype=dtype, generator=g, requires_grad=True)
    labels = torch.randint(0, 11, (2, 5), generator=g)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    return h, w, b, labels, mask


def full_logits(h: Tensor, w: Tensor, b: Tensor, plan: dict) -> Tensor:
    z = (h @ w.t() + b) * plan.get("scale", 1.0)
    cap = plan.get("softcap")
    return z if cap is None else cap * torch.tanh(z / cap)


@pytest.mark.parametrize("plan", PLANS)
def test_equals_full_log_softmax_with_gradients(plan: dict) -> None:
    h, w, b, labels, mask = inputs()
    want = full_logits(h, w, b, plan).log_softmax(-1).gather(-1, labels[..., None])[..., 0] * mask
    got = token_log_probs(h, w, labels, mask, bias=b, **plan)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *a: token_log_probs(a[0], a[1], labels, mask, bias=a[2], **plan), (h, w, b))


@pytest.mark.parametrize("plan", PLANS)
def test_kl_and_collision_equal_their_definitions(plan: dict) -> None:
    h, w, b, labels, mask = inputs()
    ref_h, ref_w = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    blocks = {k: v for k, v in plan.items() if k.endswith("chunk_size")}

    def outputs(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        head = Head(w, b, plan.get("scale", 1.0), plan.get("softcap"))
        out = score_tokens(h, head, labels, mask, ref_hidden=ref_h, ref_head=Head(ref_w), collision=True, **blocks)
        outputs.collision = out.collision  # type: ignore[attr-defined]
        assert out.kl is not None
        return out.logps, out.kl

    logp = full_logits(h, w, b, plan).log_softmax(-1)
    ref = (ref_h @ ref_w.t()).log_softmax(-1)
    logps, kl = outputs(h, w, b)
    torch.testing.assert_close(kl, (ref.exp() * (ref - logp)).sum(-1) * mask, rtol=0, atol=1e-12)
    collision = (logps - logp.exp().square().sum(-1).log()) * mask
    torch.testing.assert_close(outputs.collision, collision, rtol=0, atol=1e-12)  # type: ignore[attr-defined]
    assert torch.autograd.gradcheck(outputs, (h, w, b))


def test_gradient_is_the_same_when_backward_runs_twice() -> None:
    h, w, b, labels, mask = inputs()
    loss = token_log_probs(h, w, labels, mask, bias=b).sum()
    first = torch.autograd.grad(loss, (h, w, b), retain_graph=True)
    second = torch.autograd.grad(loss, (h, w, b))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_bf16_inputs_are_accumulated_in_float32() -> None:
    h, w, _, labels, mask = inputs(torch.float32)
    h16, w16 = h.detach().bfloat16().requires_grad_(), w.detach().bfloat16().requires_grad_()
    got = token_log_probs(h16, w16, labels, mask)
    want = (h16.float() @ w16.float().t()).log_softmax(-1).gather(-1, labels[..., None])[..., 0] * mask
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    got.sum().backward()
    assert h16.grad is not None
    assert h16.grad.dtype == torch.bfloat16


def test_extreme_logits_stay_finite() -> None:
    h, w, _, labels, mask = inputs()
    got = token_log_probs(h * 1e4, w, labels, mask)
    got.sum().backward()
    assert torch.isfinite(got).all()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


def test_no_position_selected_gives_zero_with_zero_gradient() -> None:
    h, w, _, labels, mask = inputs()
    out = token_log_probs(h, w, labels, torch.zeros_like(mask))
    out.sum().backward()
    assert out.abs().sum() == 0
    assert h.grad is not None
    assert h.grad.abs().sum() == 0


def test_memory_is_bounded_by_the_block_not_by_the_batch() -> None:
    """The largest tensor that the call allocates is chunk x V, far below B x T x V."""
    sizes: list[int] = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.numel())
            return out

    h, w = torch.randn(4, 64, 8), torch.randn(500, 8)
    labels, mask = torch.zeros(4, 64, dtype=torch.long), torch.ones(4, 64, dtype=torch.bool)
    with Spy(), torch.no_grad():
        token_log_probs(h, w, labels, mask, chunk_size=16)
    assert max(sizes) <= max(16 * 500, 4 * 64 * 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((2, 5), 11)}, r"labels must lie in \[0, 11\)"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 5)}, "mask must be bool"),
        ({"weight": torch.zeros(11, 7, dtype=torch.float64)}, r"weight must be \(V, 6\)"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    h, w, _, labels, mask = inputs()
    arguments: dict[str, Any] = {"hidden": h, "weight": w, "labels": labels, "mask": mask} | change
    with pytest.raises(ValueError, match=message):
        token_log_probs(**arguments)


def test_policy_and_reference_must_share_a_vocabulary() -> None:
    h, w, _, labels, mask = inputs()
    with pytest.raises(ValueError, match="share a vocabulary"):
        score_tokens(h, Head(w), labels, mask, ref_hidden=h, ref_head=Head(w[:-1]))
