"""`python -m pl_prefopt.demo.image.photos FOLDER`: real photographs and worse copies of them, paired by a judge.

The photographs are those that scikit-image and scikit-learn carry; configs/examples/image-photos.yaml trains on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pl_prefopt.datamodules import relabel_images
from pl_prefopt.judges import Colourfulness, Sharpness
from pl_prefopt.utilities.files import write_jsonl

JUDGES = {"sharpness": Sharpness, "colourfulness": Colourfulness}
SKIMAGE = {"astronaut": "an astronaut", "coffee": "a cup of coffee", "chelsea": "a cat", "rocket": "a rocket"}
SKLEARN = {"china": "a temple", "flower": "a flower"}
SIDE = 256


def photographs() -> dict[str, Any]:
    """Caption -> PIL image, at most `SIDE` pixels wide and high."""
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = {caption: getattr(data, name)() for name, caption in SKIMAGE.items()}
    arrays |= {caption: load_sample_image(f"{name}.jpg") for name, caption in SKLEARN.items()}
    made = {f"a photograph of {caption}": Image.fromarray(np.ascontiguousarray(a)) for caption, a in arrays.items()}
    for image in made.values():
        image.thumbnail((SIDE, SIDE))
    return made


def worse() -> dict[str, Callable[[Any], Any]]:
    """Name -> a change for the worse."""
    from PIL import ImageEnhance, ImageFilter

    return {
        "blurred": lambda p: p.filter(ImageFilter.GaussianBlur(2)),
        "pale": lambda p: ImageEnhance.Color(p).enhance(0.3),
        "small": lambda p: p.resize((p.width // 4, p.height // 4)).resize(p.size),
    }


def write_photographs(folder: Path) -> Path:
    """Write the photographs, their copies, and unlabelled.jsonl: every photograph beside each of its copies."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (caption, image) in enumerate(photographs().items()):
        name = caption.split()[-1]
        image.save(folder / f"{name}.png")
        for j, (change, apply) in enumerate(worse().items()):
            apply(image).save(folder / f"{name}-{change}.jpg", quality=60)
            pair = [f"{name}.png", f"{name}-{change}.jpg"]
            first, second = pair if (i + j) % 2 else pair[::-1]
            rows.append({"caption": caption, "image_0": first, "image_1": second, "label_0": 0.5})
    return Path(write_jsonl(folder / "unlabelled.jsonl", rows))


def main(args: list[str] | None = None) -> None:
    """Write FOLDER/pairs.jsonl: labels by the judge, near ties left out."""
    parser = argparse.ArgumentParser(prog="python -m pl_prefopt.demo.image.photos", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judge", choices=JUDGES, default="sharpness")
    parser.add_argument("--margin", type=float, default=1.0, help="in units of the judge's score")
    chosen = parser.parse_args(args)
    raw, out = write_photographs(chosen.folder), chosen.folder / "pairs.jsonl"
    counts = relabel_images(str(raw), JUDGES[chosen.judge](), out, margin=chosen.margin, overwrite=True)
    print(f"{out}: {counts}")


if __name__ == "__main__":
    main()
