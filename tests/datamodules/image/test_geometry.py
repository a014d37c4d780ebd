from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pl_prefopt.datamodules.image.geometry import (
    Geometry,
    auto_buckets,
    check_encodable,
    result_sizes,
    uniform,
)
from tests.datamodules.sample_images import noise


def places(height: int, width: int) -> Image.Image:
    """An image whose red is the row and whose green is the column."""
    grid = np.zeros((height, width, 3), np.uint8)
    grid[..., 0], grid[..., 1] = np.arange(height)[:, None], np.arange(width)
    return Image.fromarray(grid)


def corner(geometry: Geometry, image: Image.Image, epoch: int, index: int, which: int = 0) -> list[float]:
    """(row, column) of the source that stands at the top left of the result."""
    size = (image.height, image.width)
    pixels = geometry.tensor(image, which, geometry.view((size, size), epoch, index))
    return ((pixels[:2, 0, 0] + 1) * 127.5).round().tolist()


RANDOM = Geometry(20, "shared-random", flip=0.5, seed=3)


def test_both_images_get_the_same_crop_and_flip() -> None:
    image = places(20, 40)
    for epoch in range(8):
        assert corner(RANDOM, image, epoch, 5, 0) == corner(RANDOM, image, epoch, 5, 1)
    different = places(40, 80)
    frame = RANDOM.view(((20, 40), (40, 80)), 0, 5)
    assert frame.scaled == ((20, 40), (20, 40))
    assert RANDOM.tensor(different, 1, frame).shape == (3, 20, 20)


def test_the_recorded_offset_is_the_real_one() -> None:
    image = places(20, 40)
    seen = set()
    for epoch in range(16):
        frame = RANDOM.view(((20, 40), (20, 40)), epoch, 7)
        row, column = corner(RANDOM, image, epoch, 7)
        top, left = frame.offset
        assert (row, column) == (top, 39 - left if frame.flip else left)
        assert frame.conditions()["time_ids"].tolist() == [20, 40, top, left, 20, 20]
        seen.add((frame.flip, left))
    assert len(seen) > 3


def test_centre_crop_and_scale() -> None:
    geometry = Geometry(10)
    frame = geometry.view(((40, 80), (40, 80)), 0, 0)
    assert (frame.scaled[0], frame.offset, frame.flip) == ((10, 20), (0, 5), False)
    assert frame.original == (40, 80)


def test_padding_keeps_all_of_both_images() -> None:
    geometry = Geometry(32, "pad")
    frame = geometry.view(((16, 32), (64, 16)), 0, 0)
    assert frame.scaled == ((16, 32), (32, 8))
    red = Image.new("RGB", (32, 16), (255, 0, 0))
    out = geometry.tensor(red, 0, frame)
    assert (out[0] > 0.99).sum() == 16 * 32
    assert out[:, 0, 0].abs().max() < 0.01
    tall = geometry.tensor(Image.new("RGB", (16, 64), (0, 255, 0)), 1, frame)
    assert (tall[1] > 0.99).sum() == 32 * 8


def test_pixels_without_resizing_are_exact() -> None:
    image = noise(1, 24, 32)
    geometry = Geometry([24, 32])
    out = geometry.tensor(image, 0, geometry.view(((24, 32), (24, 32)), 0, 0))
    assert np.array_equal(((out.permute(1, 2, 0).numpy() + 1) * 127.5).round(), np.asarray(image, float))
    assert out.min() >= -1
    assert out.max() <= 1


@pytest.mark.parametrize("geometry", [RANDOM, Geometry(20, flip=0.3), Geometry(20, flip=1.0)])
def test_variants_are_all_frames_that_can_come(geometry: Geometry) -> None:
    sizes = ((20, 400), (20, 400))
    seen = {geometry.view(sizes, epoch, 4) for epoch in range(200)}
    assert seen == set(geometry.variants(sizes, 4))


def test_draws_depend_on_seed_epoch_and_row_only() -> None:
    sizes = ((20, 400), (20, 400))
    one = [RANDOM.view(sizes, e, i) for e in range(3) for i in range(20)]
    assert one == [RANDOM.view(sizes, e, i) for e in range(3) for i in range(20)]
    assert 40 < sum(RANDOM.view(sizes, 0, i).flip for i in range(100)) < 60
    endless = Geometry(20, "shared-random", crop_variants=0)
    assert len({endless.view(sizes, e, 0).offset for e in range(30)}) > 20
    assert {RANDOM.without_randomness().view(sizes, e, 0) for e in range(9)} == {
        RANDOM.without_randomness().view(sizes, 0, 0)
    }
    assert np.mean([uniform(0, "x", i) for i in range(1000)]) == pytest.approx(0.5, abs=0.05)


def test_buckets_by_aspect_ratio() -> None:
    geometry = Geometry(buckets=[[16, 16], [24, 12], [12, 24]])
    assert [geometry.bucket((s, s)) for s in ((100, 100), (90, 40), (40, 90), (100, 120))] == [0, 1, 2, 0]
    found = auto_buckets((512, 512))
    assert all(h % 64 == w % 64 == 0 and h * w <= 512**2 for h, w in found)
    assert (512, 512) in found
    assert result_sizes(512, "auto") == found
    assert result_sizes([8, 16], None) == ((8, 16),)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: result_sizes(0, None), "resolution must be"),
        (lambda: result_sizes([8], None), r"resolution must be \[height, width\] .*, got \[8\]"),
        (lambda: result_sizes(128, "auto"), "at least 256 x 256"),
        (lambda: result_sizes(512, []), "buckets must be .*, got an empty list"),
        (lambda: result_sizes(512, [[8, 0]]), r"buckets\[0\]"),
        (lambda: Geometry(crop="centre"), "crop must be one of .*, got 'centre'"),
        (lambda: Geometry(flip=1.5), r"flip must lie in \[0, 1\], got 1.5"),
        (lambda: check_encodable(Geometry([512, 500]), 8), "multiples of 8.*got 512 x 500 .*nearest is 512 x 496"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("crop", ["shared-center", "shared-random"])
def test_neither_image_of_a_pair_is_stretched(crop: str) -> None:
    """A circle stays a circle in both images, whichever of them is the better one."""
    rows, columns = np.mgrid[:40, :80]
    circle = Image.fromarray((255 * ((rows - 20) ** 2 + (columns - 40) ** 2 < 15**2)).astype(np.uint8)).convert("RGB")
    square = circle.crop((20, 0, 60, 40))
    for images in ((circle, square), (square, circle)):
        sizes = tuple((image.height, image.width) for image in images)
        frame = Geometry(40, crop, seed=1).view(sizes, 0, 0)  # pyright: ignore[reportArgumentType]
        assert [scaled[0] / scaled[1] for scaled in frame.scaled] == [h / w for h, w in sizes]
        assert frame.key(0) != frame.key(1)
        for which, image in enumerate(images):
            white = Geometry(40, crop, seed=1).tensor(image, which, frame)[0] > 0
            assert int(white.any(1).sum()) == 29
    centred = Geometry(40).view(((40, 80), (40, 40)), 0, 0)
    whole = [Geometry(40).tensor(image, which, centred) for which, image in enumerate((circle, square))]
    assert bool((whole[0] == whole[1]).all())


def test_the_bucket_is_that_of_both_images() -> None:
    geometry = Geometry(buckets=[[16, 16], [32, 8], [8, 32]])
    assert geometry.bucket(((100, 100), (25, 400))) == geometry.bucket(((25, 400), (100, 100))) == 2
    assert geometry.bucket(((25, 400), (400, 25))) == 0
