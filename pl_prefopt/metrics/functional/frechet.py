"""Distance of two distributions of features: the formula of FID.

`torchmetrics.image.fid.FrechetInceptionDistance` computes features and moments; this takes any moments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> Tensor:
    """Squared Frechet (2-Wasserstein) distance of two normal distributions (FID, Heusel et al. 2017, 1706.08500).

    ||mu1 - mu2||^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); the trace of the root is the sum of the square roots of the
    eigenvalues of S1 S2, which are those of S1^(1/2) S2 S1^(1/2), symmetric and not negative, so singular covariances
    need no correction.

    Args:
        mu1: (D,) mean.
        sigma1: (D, D) covariance, symmetric, positive semi-definite.
        mu2: (D,).
        sigma2: (D, D).

    Returns:
        () float64, >= 0, in squared units of the features.

    Raises:
        ValueError: shapes that do not agree, values that are not finite, a matrix that is not symmetric or has a
            clearly negative eigenvalue.

    Example:
        >>> import torch
        >>> float(frechet_distance(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2)))
        4.0
    """
    size = mu1.shape[0] if mu1.dim() == 1 else -1
    for name, value, shape in (
        ("mu1", mu1, (size,)), ("mu2", mu2, (size,)), ("sigma1", sigma1, (size, size)), ("sigma2", sigma2, (size, size))
    ):  # fmt: skip
        if tuple(value.shape) != shape or size < 1:
            raise ValueError(
                f"{name} must be {'(D,)' if name.startswith('mu') else '(D, D)'} of one D >= 1 for all arguments, got "
                f"shape {tuple(value.shape)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity. Are there at least two samples, all finite?")
    sigma1, sigma2 = sigma1.double(), sigma2.double()
    root = _square_root("sigma1", sigma1)
    _square_root("sigma2", sigma2)  # for its checks alone
    product = root @ sigma2 @ root
    trace_of_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    squared_distance = (mu1.double() - mu2.double()).square().sum()
    return (squared_distance + sigma1.trace() + sigma2.trace() - 2 * trace_of_root).clamp(min=0)


def _square_root(name: str, sigma: Tensor) -> Tensor:
    """The symmetric square root of a covariance; rounding errors of 1e-5 of its scale are allowed."""
    scale = float(sigma.abs().max())
    if float((sigma - sigma.T).abs().max()) > 1e-5 * scale:
        raise ValueError(f"{name} must be symmetric, got a matrix that is not. Use torch.cov(features.T)")
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    if float(values.min()) < -1e-5 * scale:
        raise ValueError(f"{name} must be positive semi-definite, got the eigenvalue {float(values.min()):g}")
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
