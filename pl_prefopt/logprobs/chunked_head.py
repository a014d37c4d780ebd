"""The output layer in blocks of positions and vocabulary, with a hand-written exact backward pass.

The logits of all positions would be the largest tensor of a training step. Here one buffer holds a block of them at a
time, in the forward and again in the backward pass, so memory is O(block), not O(N V).

Shapes: N scored positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """An output layer: logits = cap * tanh(scale * (h W^T + b) / cap), without the cap when it is None.

    Args:
        weight: (V, H).
        bias: (V,) or None.
        scale: factor of the logits (Cohere, Granite).
        softcap: bound of the logits (Gemma 2), > 0.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Plan:
    """Block sizes, whether the collision term is wanted, and the dtype that autocast asks for."""

    chunk: int
    vocab_chunk: int
    collision: bool
    autocast: torch.dtype | None


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Logits are float32 even for half-precision weights: a logsumexp in bfloat16 is biased."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(h: Tensor, head: Head, cols: slice, out: Tensor, cast: torch.dtype | None) -> Tensor:
    """Write scale * (h W^T + b), capped, into `out` (n, v), accumulated in the wide dtype."""
    w = head.weight[cols]
    if cast is not None:
        h, w = h.to(cast), w.to(cast)
    if h.dtype == w.dtype == out.dtype:
        torch.mm(h, w.t(), out=out)
    elif h.is_cuda and h.dtype == w.dtype:
        # half-precision operands on the tensor cores, accumulated and written in float32
        torch.mm(h, w.t(), out_dtype=out.dtype, out=out)
    else:
        torch.mm(h.to(out.dtype), w.to(out.dtype).t(), out=out)
    if head.bias is not None:
        out += head.bias[cols]
    if head.scale != 1.0:
        out *= head.scale
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)
    return out


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


class _RunningSums:
    """Sums over the vocabulary that are updated block by block, relative to the largest logit so far.

    `total` = sum exp(z - peak), `squares` = sum exp(z - peak)^2, `gap` = sum exp(z - peak) (z - other).
    """

    def __init__(self, n: int, like: Tensor) -> None:
        self.peak = like.new_full((n,), float("-inf"))
        self.total = like.new_zeros(n)
        self.squares = like.new_zeros(n)
        self.gap = like.new_zeros(n)

    def update(self, z: Tensor, squares: bool = False, other: Tensor | None = None) -> None:
        """Absorb logits `z` (n, v), which are overwritten by exp(z - peak); `other` are the policy's logits."""
        peak = torch.maximum(self.peak, z.amax(1))
        # what was summed relative to the old peak is rescaled to the new one (exp(-inf) = 0 for the first block)
        shrink = (self.peak - peak).exp()
        self.peak = peak
        diff = None if other is None else z - other
        z.sub_(peak[:, None]).exp_()
        self.total = self.total * shrink + z.sum(1)
        if squares:
            self.squares = self.squares * shrink**2 + torch.einsum("nv,nv->n", z, z)
        if diff is not None:  # under the distribution of z, which is the reference's here
            self.gap = self.gap * shrink + torch.einsum("nv,nv->n", z, diff)

    def logsumexp(self) -> Tensor:
        """(n,) logsumexp of all logits that were absorbed."""
        return self.peak + self.total.log()


class HeadFunction(torch.autograd.Function):
    """(logps, kl | None, collision | None) of N positions; backward reuses the softmax if it fitted in one block."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        labels: Tensor,
        ref_hidden: Tensor | None,
        ref_head: Head | None,
        plan: Plan,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        n, vocab = hidden.shape[0], weight.shape[0]
        vchunk = min(plan.vocab_chunk, vocab)
        buffer = hidden.new_empty(min(plan.chunk, max(n, 1)), vchunk, dtype=_accumulation_dtype(hidden.dtype))
        ref_buffer = torch.empty_like(buffer) if ref_hidden is not None else None
        logps, peak, total, ref_lse, kl, coll = (buffer.new_zeros(n) for _ in range(6))
        for rows in _blocks(n, plan.chunk):
            size = rows.stop - rows.start
            run, ref_run = _RunningSums(size, buffer), _RunningSums(size, buffer)
            label_logits = buffer.new_zeros(size)
            for cols in _blocks(vocab, vchunk):
                z = _logits(hidden[rows], head, cols, _view(buffer, size, cols), plan.autocast)
                local = labels[rows] - cols.start
                inside = (local >= 0) & (local < cols.stop - cols.start)
                taken = z.gather(1, local.clamp(0, cols.stop - cols.start - 1)[:, None]).squeeze(1)
                label_logits = torch.where(inside, taken, label_logits)
                if ref_hidden is not None and ref_head is not None and ref_buffer is not None:
                    zr = _logits(ref_hidden[rows], ref_head, cols, _view(ref_buffer, size, cols), plan.autocast)
                    ref_run.update(zr, other=z)
                run.update(z, squares=plan.collision)
            peak[rows], total[rows] = run.peak, run.total
            logps[rows] = label_logits - run.logsumexp()
            if ref_hidden is not None:
                ref_lse[rows] = ref_run.logsumexp()
                # KL(ref || policy) = E_ref[z_ref - z] - (lse_ref - lse)
                kl[rows] = ref_run.gap / ref_run.total - (ref_run.logsumexp() - run.logsumexp())
            if plan.collision:
                coll[rows] = logps[rows] - (run.squares.log() - 2 * run.total.log())
        ctx.save_for_backward(hidden, weight, bias, labels, peak, total, ref_hidden, ref_lse)
        ctx.head, ctx.ref_head, ctx.plan, ctx.vchunk = head, ref_head, plan, vchunk
        # One block held everything: its softmax is kept, and the backward pass need not multiply by the weight again.
        # With a reference or a cap the backward pass needs the logits themselves.
        one_block = n <= plan.chunk and vchunk == vocab and ref_hidden is None and head.softcap is None
        needs_grad = hidden.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ctx.softmax = buffer[:n].div_(total[:, None]) if one_block and needs_grad and n else None
        ctx.set_materialize_grads(False)
        coll_out = coll if plan.collision else None
        if coll_out is not None:
            ctx.mark_non_differentiable(coll_out)
        return logps, (kl if ref_hidden is not None else None), coll_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        g_logp, g_kl, _ = grads
        hidden, weight, bias, labels, peak, total, ref_hidden, ref_lse = ctx.saved_tensors
        plan, head = ctx.plan, ctx.head
        d_hidden = (
            torch.zeros(hidden.shape, dtype=peak.dtype, device=hidden.device) if ctx.needs_input_grad[0] else None
        )
        d_weight = (
            torch.zeros(weight.shape, dtype=peak.dtype, device=weight.device) if ctx.needs_input_grad[1] else None
        )
        d_bias = peak.new_zeros(weight.shape[0]) if bias is not None and ctx.needs_input_grad[2] else None
        softmax, ctx.softmax = ctx.softmax, None
        buffer = softmax if softmax is not None else peak.new_empty(min(plan.chunk, max(len(peak), 1)), ctx.vchunk)
        ref_buffer = torch.empty_like(buffer) if g_kl is not None else None
        for rows in _blocks(len(peak), plan.chunk):
            size = rows.stop - rows.start
            for cols in _blocks(weight.shape[0], ctx.vchunk):
                p = _view(buffer, size, cols)
                slope = None
                if softmax is None:
                    _logits(hidden[rows], head, cols, p, plan.autocast)
                    # d/dx cap * tanh(x / cap) = 1 - (capped / cap)^2, before p is turned into probabilities
                    slope = None if head.softcap is None else 1 - (p / head.softcap) ** 2
                    p.sub_(peak[rows, None]).exp_().div_(total[rows, None])
                d = _grad_logits(p, rows, cols, labels, g_logp, g_kl)
                if g_kl is not None and ref_buffer is not None:
                    pr = _logits(ref_hidden[rows], ctx.ref_head, cols, _view(ref_buffer, size, cols), plan.autocast)
                    d -= pr.sub_(ref_lse[rows, None]).exp_().mul_(g_kl[rows, None])
                if slope is not None:
                    d *= slope
                if head.scale != 1.0:
                    d *= head.scale
                if d_hidden is not None:
                    d_hidden[rows].addmm_(d, weight[cols].to(d.dtype))
                if d_weight is not None:
                    d_weight[cols].addmm_(d.t(), hidden[rows].to(d.dtype))
                if d_bias is not None:
                    d_bias[cols] += d.sum(0)
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(weight.dtype),
            *(None,) * 5,
        )


def _view(buffer: Tensor, n: int, cols: slice) -> Tensor:
    """The first n x v numbers of the buffer as a contiguous matrix, for the smaller last block too.

    A slice `buffer[:n, :v]` would not be contiguous, and a fresh tensor per block fragments the heap on a CPU.
    """
    v = cols.stop - cols.start
    return buffer.view(-1)[: n * v].view(n, v)


def _grad_logits(
    p: Tensor, rows: slice, cols: slice, labels: Tensor, g_logp: Tensor | None, g_kl: Tensor | None
) -> Tensor:
    """D logits = g_logp * (onehot - p) + g_kl * p, in place of p; the caller subtracts g_kl * p_ref."""
    zero = p.new_zeros(p.shape[0])
    g = zero if g_logp is None else g_logp[rows]
    d = p.mul_(((zero if g_kl is None else g_kl[rows]) - g)[:, None])
    local = labels[rows] - cols.start
    inside = (local >= 0) & (local < d.shape[1])
    d.scatter_add_(1, local.clamp(0, d.shape[1] - 1)[:, None], (g * inside)[:, None])
    return d
