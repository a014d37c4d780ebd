"""Images of a policy as files, and pairs that name them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pl_prefopt.datamodules import ImagePreferenceDataModule


def test_images_are_kept_to_eight_bits_and_named_from_the_folder_of_the_pairs(tmp_path: Path) -> None:
    data = ImagePreferenceDataModule(str(tmp_path / "pairs.jsonl"))
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    made = data.write_samples(tmp_path, "round-000/samples/000007", list(images))
    assert made == ["round-000/samples/000007-0.png", "round-000/samples/000007-1.png"]
    row = {"condition": "a cat", "chosen": made[1], "rejected": made[0], "round": 0}
    line = json.loads(Path(data.write_pairs(tmp_path, "round-001/pairs", [row])).read_text())
    assert line == {
        "caption": "a cat",
        "chosen": "../round-000/samples/000007-1.png",
        "rejected": "../round-000/samples/000007-0.png",
        "round": 0,
    }
    with Image.open(tmp_path / "round-001" / line["chosen"]) as image:
        seen = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert (seen - images[1]).abs().max() <= 0.5 / 255 + 1e-6
    for wrong in (images[0] * 2, images[0] - 1, torch.full((3, 2, 2), torch.nan), torch.zeros(1, 2, 2)):
        with pytest.raises(ValueError, match=r"images \(3, H, W\) in \[0, 1\]"):
            data.write_samples(tmp_path, "x", [wrong])
