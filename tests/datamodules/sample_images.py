"""Small image files that the tests of image data share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.datamodules.sample_files import write_jsonl


def noise(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    """An RGB image of smooth random colours, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def image_folder(folder: Path, count: int, size: tuple[int, int] = (24, 32), **extra: Any) -> Path:
    """A folder with pairs.jsonl and two PNG per row; returns the path of the JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        for k, name in enumerate(("good", "bad")):
            noise(2 * i + k, *size).save(folder / f"{name}{i}.png")
        rows.append({"caption": f"caption {i % 3}", "chosen": f"good{i}.png", "rejected": f"bad{i}.png"} | extra)
    return write_jsonl(folder / "pairs.jsonl", rows)
