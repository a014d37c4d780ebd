"""NDCG against scikit-learn, which averages ties as we do, and against all orders of equal scores."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from pl_prefopt.metrics.functional import ndcg


@pytest.mark.parametrize("k", [None, 1, 3])
def test_the_values_of_scikit_learn_ties_included(k: int | None) -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (200, 6), generator=g).float()
    relevance = torch.randint(0, 5, (200, 6), generator=g).float()
    want = [ndcg_score(2 ** r[None].numpy() - 1, s[None].numpy(), k=k) for s, r in zip(scores, relevance, strict=True)]
    np.testing.assert_allclose(ndcg(scores, relevance, k=k).numpy(), want, atol=1e-12)


def test_equal_scores_give_the_mean_over_all_orders() -> None:
    relevance = torch.tensor([3.0, 0.0, 1.0, 1.0])
    orders = [torch.tensor([p], dtype=torch.float64) for p in permutations(range(4))]
    mean = torch.stack([ndcg(o, relevance[None]) for o in orders]).mean()
    assert float(ndcg(torch.zeros(1, 4), relevance[None])) == pytest.approx(float(mean), abs=1e-12)


def test_padding_is_as_if_it_were_not_there() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.2, float("nan")]])
    relevance = torch.tensor([[2.0, 0.0, 1.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert torch.equal(ndcg(scores, relevance, mask=mask), ndcg(scores[:, :3], relevance[:, :3]))
    assert float(ndcg(-relevance[:, :3], relevance[:, :3])) < float(ndcg(relevance[:, :3], relevance[:, :3])) == 1.0


def test_a_list_without_a_relevant_item_counts_zero() -> None:
    assert float(ndcg(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))) == 0.0


def test_refused() -> None:
    one = torch.ones(1, 2)
    for arguments, message in (
        ((one, one[:, :1], None), r"relevance must be \(1, 2\), got shape \(1, 1\)"),
        ((one, -one, None), r"relevance must be finite and >= 0, got -1.0"),
        ((one * float("nan"), one, None), r"scores must be finite, got nan"),
        ((one, one, 0), r"k must be an integer >= 1 or None, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ndcg(arguments[0], arguments[1], k=arguments[2])
