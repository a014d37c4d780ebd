"""Accuracy with ties."""

from __future__ import annotations

import pytest
import torch

from pl_prefopt.metrics.functional import pairwise_accuracy


def test_a_tie_counts_one_half() -> None:
    assert pairwise_accuracy(torch.tensor([2.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])).item() == 0.625
    with pytest.raises(ValueError, match="must be numbers, got 1 NaN"):
        pairwise_accuracy(torch.tensor([float("nan")]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"B > 0, got \(0,\) and \(0,\)"):
        pairwise_accuracy(torch.zeros(0), torch.zeros(0))
