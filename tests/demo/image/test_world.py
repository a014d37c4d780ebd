"""Renders are read back exactly, under noise too; the judge's scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pl_prefopt.demo.image.world import (
    BACKGROUND,
    COLOURS,
    SHAPES,
    Reading,
    ShapesJudge,
    ShapesWorld,
    accuracy,
    agreement,
    coverage,
    parse,
)
from pl_prefopt.judges.base import judged

WORLD = ShapesWorld()


def drawn(count: int, world: ShapesWorld = WORLD, seed: int = 0) -> tuple[list[str], Tensor]:
    rng = np.random.default_rng(seed)
    captions = world.captions * count
    return captions, torch.stack([world.draw(c, rng) for c in captions])


def test_the_captions_are_all_combinations() -> None:
    assert len(set(WORLD.captions)) == len(COLOURS) * len(SHAPES) == 12
    assert {parse(c) for c in WORLD.captions} == {(c, s) for c in COLOURS for s in SHAPES}


@pytest.mark.parametrize(("noise", "least"), [(0.0, 1.0), (0.05, 1.0), (0.1, 0.99)])
@pytest.mark.parametrize("size", [16, 32])
def test_images_are_read_back(size: int, noise: float, least: float) -> None:
    captions, images = drawn(10, ShapesWorld(size))
    images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    found = ShapesWorld(size).read(images)
    assert min(accuracy(captions, found).values()) >= least
    assert np.mean([r.clarity for r in found]) > 1 - 15 * noise**2 - 0.04


@pytest.mark.parametrize("image", [torch.full((3, 32, 32), BACKGROUND), torch.rand(3, 32, 32)])
def test_what_shows_no_shape_is_read_as_none(image: Tensor) -> None:
    (found,) = WORLD.read(image[None])
    assert (found.colour, found.shape) == ("", "")
    assert agreement("a red circle", found) == 0


def test_a_half_faded_shape_keeps_its_attributes() -> None:
    image = WORLD.render("blue", "triangle", 0.5, 0.5, 0.3)
    (found,) = WORLD.read((0.7 * image + 0.3 * BACKGROUND)[None])
    assert (found.colour, found.shape) == ("blue", "triangle")
    assert 0.5 < found.clarity < 0.95


def test_the_covered_area_is_that_of_the_shape() -> None:
    radius, fine = 0.3, 96
    areas = {shape: coverage(shape, 0.5, 0.5, radius, fine).mean() for shape in SHAPES}
    assert areas["circle"] == pytest.approx(np.pi * radius**2, abs=1e-3)
    assert areas["square"] == pytest.approx((1.78 * radius) ** 2, abs=3e-3)
    assert areas["triangle"] == pytest.approx(2.5 * radius * 2.05 * radius / 2, abs=3e-3)


def test_the_same_generator_draws_the_same_image() -> None:
    first, second, other = (drawn(1, seed=s)[1] for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_accuracy_by_hand() -> None:
    readings = [Reading("red", "circle", 1.0), Reading("red", "square", 1.0), Reading("", "", 0.1)]
    found = accuracy(["a red circle", "a red circle", "a blue square"], readings)
    assert found == {"colour": pytest.approx(2 / 3), "shape": pytest.approx(1 / 3), "both": pytest.approx(1 / 3)}


def test_the_judge_counts_attributes() -> None:
    image = WORLD.render("green", "square", 0.5, 0.5, 0.3)
    captions = ["a green square", "a green circle", "a red square", "a red circle"]
    scores = judged(ShapesJudge(), captions, [image] * 4)
    (reading,) = WORLD.read(image[None])
    assert scores.tolist() == pytest.approx([reading.clarity * s for s in (1, 0.5, 0.5, 0)])
    assert reading.clarity > 0.95


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 8 pixels, got 4"):
        ShapesWorld(4)
    with pytest.raises(ValueError, match="'a purple circle' must name a colour of red, green"):
        parse("a purple circle")
    with pytest.raises(ValueError, match=r"\(N, 3, 32, 32\), got \(1, 3, 8, 8\)"):
        WORLD.read(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="finite"):
        WORLD.read(torch.full((1, 3, 32, 32), float("nan")))
