"""Predictions as JSON lines, one file a process, keyed by the row's id in the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor


class PredictionWriter(BasePredictionWriter):
    """Write what `predict_step` returns: a dict of tensors with the batch first, `index` among them, one line a row.

    Ranks write their own files, so unequal numbers of rows need no waiting. Use it with
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
        columns = {name: value.detach().cpu().tolist() for name, value in prediction.items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        file = self._file(trainer, dataloader_idx)
        with file.open("a" if file in self._begun else "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        self._begun.add(file)

    def _file(self, trainer: pl.Trainer, dataloader_idx: int) -> Path:
        folder = Path(self.path or trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        loaders = trainer.predict_dataloaders
        several = isinstance(loaders, (list, tuple)) and len(loaders) > 1
        part = f"-{dataloader_idx}" if several else ""
        return folder / f"predictions{part}-{trainer.global_rank}.jsonl"
