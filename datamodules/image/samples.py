"""Images of a policy as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pl_prefopt.datamodules.media.write import write_media


def write_images(root: Path, name: str, samples: Sequence[Tensor]) -> list[str]:
    """Write images (3, H, W) in [0, 1] as `<root>/<name>-<i>.png`, 8 bit; return the paths below `root`.

    Raises:
        ValueError: a sample of another shape or range, or not finite.
    """
    return write_media(root, name, samples, _save_png, "png")


def _save_png(sample: Tensor, path: Path) -> None:
    from PIL import Image

    if sample.dim() != 3 or sample.shape[0] != 3 or not bool(((sample >= 0) & (sample <= 1)).all()):
        raise ValueError(
            f"samples must be images (3, H, W) in [0, 1], got a tensor {tuple(sample.shape)} in "
            f"[{sample.min().item():g}, {sample.max().item():g}]"
        )
    pixels = (sample.detach().float() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path)
