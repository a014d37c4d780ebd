"""Sharpness and colourfulness against numpy, scipy and known images."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from pl_prefopt.judges import Colourfulness, Sharpness, judged


def photographs() -> list[Tensor]:
    from skimage import data

    return [
        torch.from_numpy(getattr(data, n)()[:90, :120].copy()).permute(2, 0, 1) / 255 for n in ("coffee", "chelsea")
    ]


def test_sharpness_equals_scipy() -> None:
    images = [*photographs(), torch.rand(3, 7, 5)]
    expected = []
    for p in images:
        luma = 255 * np.tensordot([0.299, 0.587, 0.114], p.double().numpy(), 1)
        kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
        expected.append(scipy.signal.convolve2d(luma, kernel, mode="valid").var())
    assert judged(Sharpness(), [""] * 3, images).tolist() == pytest.approx(expected, rel=1e-5)


def test_colourfulness_equals_the_paper_in_numpy() -> None:
    images = [*photographs(), torch.rand(3, 7, 5)]
    expected = []
    for p in images:
        r, g, b = (255 * p.double()).numpy()
        rg, yb = r - g, 0.5 * (r + g) - b
        expected.append(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
    assert judged(Colourfulness(), [""] * 3, images).tolist() == pytest.approx(expected, rel=1e-5)


def test_blur_lowers_sharpness_and_grey_has_no_colour() -> None:
    from torchvision.transforms.functional import gaussian_blur

    for image in photographs():
        sharp = judged(Sharpness(), ["", ""], [image, gaussian_blur(image, [5, 5])])
        assert sharp[0] > 2 * sharp[1]
        vivid = judged(Colourfulness(), ["", ""], [image, image.mean(0).expand(3, -1, -1)])
        assert vivid[0] > 10
        assert vivid[1] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("judge", [Sharpness(), Colourfulness()])
def test_other_shapes_and_nan_are_refused(judge: Sharpness) -> None:
    with pytest.raises(ValueError, match=r"sample 1 must be an image \(3, H, W\) .* got shape \(1, 8, 8\)"):
        judged(judge, ["", ""], [torch.rand(3, 8, 8), torch.rand(1, 8, 8)])
    with pytest.raises(ValueError, match="nan in row 0"):
        judged(judge, [""], [torch.full((3, 8, 8), float("nan"))])
