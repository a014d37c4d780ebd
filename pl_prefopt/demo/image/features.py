"""Features for FID on small images, where Inception features make no sense: fixed random convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pl_prefopt.utilities.seeding import derive_seed


class RandomFeatures(nn.Module):
    """(N, 3, H, W) in [0, 1] -> (N, F): two random convolutions with ReLU, averaged over the image.

    FID on these depends on their seed: numbers compare within one setting only.

    Args:
        num_features: F.
        seed: of the weights.
    """

    def __init__(self, num_features: int = 48, seed: int = 0) -> None:
        super().__init__()
        self.num_features = num_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "features"))
            self.layers = nn.Sequential(
                nn.Conv2d(3, num_features // 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(num_features // 2, num_features, 3, 2, 1)
            )
            for layer in (self.layers[0], self.layers[2]):
                nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, F)."""
        return self.layers(images.float()).relu().mean((2, 3))
