"""The checked entry of judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_prefopt.judges import Judge, judged
from pl_prefopt.utilities.configurable import from_config, to_config


class Fixed(Judge):
    """Returns what it was built with."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64, requires_grad=True)


def test_scores_pass_as_float32_without_graph() -> None:
    out = judged(Fixed([1.0, -2.0]), ["a", "b"], ["x", "y"])
    assert out.tolist() == [1.0, -2.0]
    assert out.dtype == torch.float32
    assert not out.requires_grad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"Fixed\.score must return one number per sample, \(2,\), got shape \(1,\)"),
        ([1.0, float("nan")], r"Fixed\.score must return finite numbers, got nan in row 1 .*'b'.*'y'"),
        ([float("-inf"), 0.0], r"got -inf in row 0"),
    ],
)
def test_wrong_scores_are_refused_by_name(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judged(Fixed(values), ["a", "b"], ["x", "y"])


def test_conditions_must_match_samples() -> None:
    with pytest.raises(ValueError, match="one per sample, got 1 for 2 samples"):
        judged(Fixed([1.0, 2.0]), ["a"], ["x", "y"])


def test_a_picture_is_told_by_its_shape() -> None:
    with pytest.raises(ValueError, match=r"tensor \(3, 2, 2\) in \[0, 0\]"):
        judged(Fixed([float("nan")]), ["a"], [torch.zeros(3, 2, 2)])


def test_a_judge_can_be_named_in_a_checkpoint() -> None:
    assert from_config(to_config(Fixed([1.0])), Judge) == Fixed([1.0])
