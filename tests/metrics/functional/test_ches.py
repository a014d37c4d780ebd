"""CHES by an explicit double loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pl_prefopt.metrics.functional import ches_score


def by_loops(h_w: Tensor, m_w: Tensor, h_l: Tensor, m_l: Tensor, normalize: bool) -> list[float]:
    """Sum over all pairs of positions of their inner products, one number at a time."""
    out = []
    for b in range(len(h_w)):
        w = [h_w[b, t].double() for t in range(h_w.shape[1]) if m_w[b, t]]
        r = [h_l[b, t].double() for t in range(h_l.shape[1]) if m_l[b, t]]
        cross = sum(float(x @ y) for x in w for y in r)
        own = sum(float(x @ y) for x in w for y in w)
        out.append(cross / (len(w) * len(r)) - own / len(w) ** 2 if normalize else cross - own)
    return out


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h_w, h_l = torch.sin(torch.arange(30.0).view(2, 5, 3) / 10), torch.cos(torch.arange(24.0).view(2, 4, 3) / 10)
    m_w = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
    m_l = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)
    return h_w, m_w, h_l, m_l


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_double_loop(normalize: bool) -> None:
    got = ches_score(*example(), normalize=normalize)
    assert got.tolist() == pytest.approx(by_loops(*example(), normalize), abs=1e-6)


def test_gives_the_published_check_values() -> None:
    assert ches_score(*example()).tolist() == pytest.approx([0.387279, -1.840438], abs=1e-6)


def test_padding_does_not_matter() -> None:
    h_w, m_w, h_l, m_l = example()
    junk = torch.full((2, 3, 3), float("nan"))
    off = torch.zeros(2, 3, dtype=torch.bool)
    left = ches_score(torch.cat([junk, h_w], 1), torch.cat([off, m_w], 1), h_l, m_l)
    right = ches_score(h_w, m_w, torch.cat([h_l, junk], 1), torch.cat([m_l, off], 1))
    assert torch.equal(left, ches_score(*example()))
    assert torch.equal(right, ches_score(*example()))


def test_eight_thousand_tokens_of_a_bf16_model_do_not_overflow() -> None:
    h = torch.full((1, 8192, 64), 30.0, dtype=torch.bfloat16)
    m = torch.ones(1, 8192, dtype=torch.bool)
    assert ches_score(h, m, -h, m, normalize=False).item() == pytest.approx(-2 * 64 * (30.0 * 8192) ** 2, rel=1e-6)
    assert ches_score(h, m, -h, m).item() == pytest.approx(-2 * 64 * 900.0, rel=1e-6)


def test_identical_samples_score_zero() -> None:
    h_w, m_w, _, _ = example()
    assert ches_score(h_w, m_w, h_w, m_w).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"chosen_mask": torch.zeros(2, 5, dtype=torch.bool)},
            r"chosen_mask must have a position in every row, got rows \[0, 1\] without one",
        ),
        ({"rejected_mask": torch.ones(2, 4)}, "bool mask"),
        ({"rejected_hidden": torch.zeros(2, 4, 7)}, "agree"),
    ],
)
def test_what_does_not_agree_is_refused(change: dict[str, Tensor], message: str) -> None:
    names = ("chosen_hidden", "chosen_mask", "rejected_hidden", "rejected_mask")
    values = dict(zip(names, example(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        ches_score(*(values[n] for n in names))
