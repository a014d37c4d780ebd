"""The win rate by hand."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.metrics import WinRate


def test_uneven_batches_counts_ties_half() -> None:
    metric = WinRate()
    metric.update(torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 2.0, 2.0, 1.0]))
    metric.update(torch.tensor([5.0]), torch.tensor([-5.0]))
    assert float(metric.compute()) == pytest.approx((1 + 0.5 + 1 + 0 + 1) / 5)


@pytest.mark.parametrize(
    ("scores", "base", "named"),
    [([1.0], [1.0, 2.0], r"must both be \(B,\), got \(1,\) and \(2,\)"), ([float("nan")], [1.0], "finite")],
)
def test_refusals(scores: list[float], base: list[float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WinRate().update(torch.tensor(scores), torch.tensor(base))
