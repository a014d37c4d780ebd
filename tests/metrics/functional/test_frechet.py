"""The Frechet distance against scipy's matrix root, and FID on given features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pl_prefopt.metrics.functional import frechet_distance


def features(seed: int, count: int = 200, size: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + rng.normal(size=size)


def moments(x: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T))


def oracle(a: np.ndarray, b: np.ndarray) -> float:
    s1, s2 = np.cov(a.T), np.cov(b.T)
    root: Any = scipy.linalg.sqrtm(s1 @ s2)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root.real))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_scipy(seed: int) -> None:
    a, b = features(seed), features(seed + 10)
    assert float(frechet_distance(*moments(a), *moments(b))) == pytest.approx(oracle(a, b), rel=1e-8)


def test_symmetric_and_zero_only_for_equal_moments() -> None:
    a, b = moments(features(0)), moments(features(1))
    assert float(frechet_distance(*a, *a)) == pytest.approx(0, abs=1e-9)
    assert float(frechet_distance(*a, *b)) == pytest.approx(float(frechet_distance(*b, *a)), rel=1e-10)
    assert float(frechet_distance(*a, *b)) > 1


def test_singular_covariances_of_few_samples() -> None:
    a, b = features(0, count=5, size=20), features(1, count=4, size=20)
    ridge = 1e-13 * np.eye(20)
    root = scipy.linalg.sqrtm(np.cov(a.T) + ridge) @ (np.cov(b.T) + ridge) @ scipy.linalg.sqrtm(np.cov(a.T) + ridge)
    eigenvalues = np.linalg.eigvalsh((root + root.T).real / 2).clip(0)
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T))
    expected = gap - 2 * np.sqrt(eigenvalues).sum()
    assert float(frechet_distance(*moments(a), *moments(b))) == pytest.approx(expected, rel=1e-4)


def test_one_dimension_by_hand() -> None:
    made = frechet_distance(torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([3.0]), torch.tensor([[9.0]]))
    assert float(made) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


class MeanColour(nn.Module):
    """(N, 3, H, W) -> (N, 6)."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.float().mean((2, 3)), x.float().std((2, 3))], 1)


def test_fid_through_torchmetrics_when_features_are_given() -> None:
    real, fake = (torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(s)) ** (s + 1) for s in (0, 1))
    metric = FrechetInceptionDistance(feature=MeanColour(), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    given = [MeanColour()(x).double() for x in (real, fake)]
    expected = frechet_distance(*(m for f in given for m in (f.mean(0), torch.cov(f.T))))
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mu2": torch.zeros(3)}, r"mu2 must be \(D,\) of one D >= 1 for all arguments, got shape \(3,\)"),
        ({"sigma1": torch.zeros(2, 3)}, r"sigma1 must be \(D, D\) of one D >= 1 for all arguments, got shape \(2, 3\)"),
        ({"mu1": torch.tensor([0.0, float("nan")])}, "mu1 must be finite"),
        ({"sigma2": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "sigma2 must be symmetric"),
        ({"sigma1": -torch.eye(2)}, "sigma1 must be positive semi-definite, got the eigenvalue -1"),
    ],
)
def test_refusals(change: dict[str, Tensor], named: str) -> None:
    good = {"mu1": torch.zeros(2), "sigma1": torch.eye(2), "mu2": torch.zeros(2), "sigma2": torch.eye(2)}
    with pytest.raises(ValueError, match=named):
        frechet_distance(**{**good, **change})
