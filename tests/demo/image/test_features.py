"""Random features: fixed by their seed, of the size they say, and telling real from other images."""

from __future__ import annotations

import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from pl_prefopt.demo.image.features import RandomFeatures


def test_a_seed_gives_one_set_of_features_and_leaves_the_global_state() -> None:
    state, images = torch.get_rng_state(), torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, same, other = (RandomFeatures(16, seed)(images) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.shape == (3, 16)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_fid_is_small_between_halves_of_one_world_and_large_to_another() -> None:
    g = torch.Generator().manual_seed(0)
    real, dark = torch.rand(400, 3, 8, 8, generator=g), 0.7 * torch.rand(200, 3, 8, 8, generator=g)
    found = []
    for made in (real[200:], dark):
        fid = FrechetInceptionDistance(RandomFeatures(16), normalize=True)
        fid.update(real[:200], real=True)
        fid.update(made, real=False)
        found.append(float(fid.compute()))
    assert found[0] < 0.02
    assert found[1] > 10 * found[0]
