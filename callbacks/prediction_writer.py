"""Predictions as JSON lines, one file a process, keyed by the row's id in the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from pl_prefopt.callbacks.support.shared import run_folder


class PredictionWriter(BasePredictionWriter):
    """Write what `predict_step` returns: a dict of tensors with the batch first, `index` among them, one line a row.

    Pictures, uint8 (B, 3, H, W), become `<name>-<index>.png` beside it, and the line holds the file's name. Ranks write
    their own files, so unequal numbers of rows need no waiting. Use it with
    `--return_predictions false`, so that nothing is collected in memory.

    Args:
        path: folder; None: the run folder. Files are `predictions-<rank>.jsonl`; with several data sets
            `predictions-<set>-<rank>.jsonl`.

    Raises:
        ValueError: `predict_step` returned something else.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self._begun: set[Path] = set()
        self._folder = Path()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the folder, which all ranks do together, and begin new files."""
        self._folder = run_folder(trainer, self.path)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._begun = set()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of a batch."""
        if not isinstance(prediction, dict) or not all(isinstance(v, Tensor) for v in prediction.values()):
            raise ValueError(
                f"PredictionWriter takes a dict of tensors from {type(pl_module).__name__}.predict_step, got "
                f"{type(prediction).__name__}"
            )
        file = self._file(trainer, dataloader_idx)
        ids = prediction.get("index", torch.arange(0)).tolist()
        columns = {
            name: _pictures(file.parent, name, ids, value) if _is_picture(value) else value.detach().cpu().tolist()
            for name, value in prediction.items()
        }
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        with file.open("a" if file in self._begun else "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        self._begun.add(file)

    def _file(self, trainer: pl.Trainer, dataloader_idx: int) -> Path:
        loaders = trainer.predict_dataloaders
        several = isinstance(loaders, (list, tuple)) and len(loaders) > 1
        part = f"-{dataloader_idx}" if several else ""
        return self._folder / f"predictions{part}-{trainer.global_rank}.jsonl"


def _is_picture(value: Tensor) -> bool:
    return value.dtype == torch.uint8 and value.dim() == 4 and value.shape[1] == 3


def _pictures(folder: Path, name: str, ids: Sequence[int], pictures: Tensor) -> list[str]:
    """Write pictures as PNG; returns the files' names."""
    from PIL import Image

    names = [f"{name}-{i:06d}.png" for i in ids]
    for file, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(folder / file)
    return names
