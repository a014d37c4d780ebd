"""Predictions as JSON lines, one file per process, keyed by the row's id in the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from pl_prefopt.callbacks.support.protocols import Batch
from pl_prefopt.callbacks.support.run_folder import run_folder


class PredictionWriter(BasePredictionWriter):
    """Write what `predict_step` returns: a dict of tensors with the batch first, `index` among them, one line per row.

    Images, uint8 (B, 3, H, W), become `<name>-<index>.png` beside the file, and the line holds the name of that file.
    Each rank writes its own file, so ranks with unequal numbers of rows cannot deadlock. Use it with
    `--return_predictions false`, so that predictions are not collected in memory.

    Args:
        path: folder; None: the run folder. Files are `predictions-<rank>.jsonl`; with several data sets
            `predictions-<set>-<rank>.jsonl`.

    Raises:
        ValueError: `predict_step` returned something else.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self._started: set[Path] = set()
        self._folder = Path()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the run folder, on all ranks at once, and start new files."""
        self._folder = run_folder(trainer, self.path)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._started = set()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: object,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of a batch."""
        if not isinstance(prediction, dict) or not all(isinstance(v, Tensor) for v in prediction.values()):
            raise ValueError(
                f"PredictionWriter requires a dict of tensors from {type(pl_module).__name__}.predict_step, got "
                f"{type(prediction).__name__}"
            )
        file = self._file(trainer, dataloader_idx)
        ids = prediction.get("index", torch.arange(0)).tolist()
        columns = {
            name: write_images(file.parent, name, ids, value) if is_image(value) else value.detach().cpu().tolist()
            for name, value in prediction.items()
        }
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        with file.open("a" if file in self._started else "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        self._started.add(file)

    def _file(self, trainer: pl.Trainer, dataloader_idx: int) -> Path:
        loaders = trainer.predict_dataloaders
        several = isinstance(loaders, (list, tuple)) and len(loaders) > 1
        part = f"-{dataloader_idx}" if several else ""
        return self._folder / f"predictions{part}-{trainer.global_rank}.jsonl"


def is_image(value: Tensor) -> bool:
    """Whether a column holds images, uint8 (B, 3, H, W)."""
    return value.dtype == torch.uint8 and value.dim() == 4 and value.shape[1] == 3


def write_images(folder: Path, name: str, ids: Sequence[int], images: Tensor) -> list[str]:
    """Write images as PNG; return the names of the files."""
    from PIL import Image

    names = [f"{name}-{i:06d}.png" for i in ids]
    for file, image in zip(names, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(folder / file)
    return names
