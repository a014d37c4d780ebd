"""Labels of image pairs by a judge instead of people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pl_prefopt.datamodules.image.decode import conversions, image_kind
from pl_prefopt.datamodules.media.records import MediaSource
from pl_prefopt.datamodules.media.relabel import Relabeller
from pl_prefopt.judges.base import Judge


def relabel_images(
    data: str | list[str],
    judge: Judge,
    out: str | Path,
    *,
    margin: float = 0.0,
    ties: str = "drop",
    batch_size: int = 16,
    columns: dict[str, str] | None = None,
    image_folder: str | None = None,
    convert: bool | list[str] = False,
    on_bad_row: str = "error",
    limit: int | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the pairs of `data` with the labels of a judge (2311.12908, section on AI feedback).

    The image with the higher score wins; scores are of the original pixels, before any scaling or cropping, and each
    (caption, image) is judged once. Labels of the file are ignored, but counted where they agree. A row of the result:
    `caption`, `image_0`, `image_1`, `label_0`, `score_0`, `score_1`, and the data columns of the file except
    `preference_prob`.

    Args:
        data: what `ImagePreferenceDataModule(train=...)` takes.
        judge: scores images (3, H, W) in [0, 1], each of its own size; higher is better.
        out: ends in .jsonl (images are named from its folder, copied to `images/` if they lie elsewhere) or .parquet
            (bytes inside).
        margin: >= 0, in units of the score; pairs whose scores differ by no more are ties.
        ties: "drop" leaves them out, "half" writes label .5; both count them.
        batch_size: images that are judged together.
        columns: our column name -> the file's.
        image_folder: where relative image paths begin.
        convert: kinds of images that are converted instead of refused.
        on_bad_row: "error" or "drop".
        limit: use only the first rows.
        overwrite: replace `out` if it exists.

    Returns:
        Counts: read, pairs (written), ties, agree and disagree (with labels of the file that are no ties), judged
        (images), dropped/<reason>.

    Raises:
        ValueError: an argument is out of range, a row cannot be used, or no pair is left.
    """
    kind = image_kind(conversions(convert))
    source = MediaSource.open(data, kind, "data", columns=columns, folder=image_folder)
    relabeller = Relabeller(source, judge, _to_tensor, margin, ties, batch_size, on_bad_row, limit)
    return relabeller.write(Path(out), overwrite=overwrite)


def _to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
