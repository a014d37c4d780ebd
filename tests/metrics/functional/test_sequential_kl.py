"""The sequential KL by its definition, one position at a time."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.metrics.functional import sequential_kl


def test_sequential_kl_is_the_sum_of_its_positions() -> None:
    policy, ref = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    want = []
    for b in range(2):
        total = 0.0
        for t in range(3):
            p, q = ref[b, t].softmax(-1), policy[b, t].softmax(-1)
            total += float((p * (p.log() - q.log())).sum()) * bool(mask[b, t])
        want.append(total)
    assert sequential_kl(policy, ref, mask).tolist() == pytest.approx(want, abs=1e-12)
    assert sequential_kl(ref, ref, mask).abs().max() == 0
    spike = torch.zeros(1, 1, 5)
    spike[0, 0, 0] = 200.0
    assert torch.isfinite(sequential_kl(torch.zeros(1, 1, 5), spike, torch.ones(1, 1, dtype=torch.bool))).all()
    with pytest.raises(ValueError, match="mask"):
        sequential_kl(policy, ref, mask[:1])
