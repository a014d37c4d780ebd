"""`PromptDataModule`: captions to draw pictures for, without any pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader


class PromptDataModule(pl.LightningDataModule):
    """Captions for `predict`, e.g. of `ImagePreferenceModule`: batches with `caption` (list of str) and `index` (B,).

    Args:
        prompts: captions, or the path of a text file with one caption a line; empty lines are left out.
        batch_size: captions per batch.

    Raises:
        ValueError: no caption, a file that does not exist, batch_size < 1.
    """

    def __init__(self, prompts: list[str] | str, batch_size: int = 4) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if isinstance(prompts, str) and not Path(prompts).is_file():
            raise ValueError(f"prompts: no file {prompts!r}; give a text file with one caption a line, or a list")
        lines = Path(prompts).read_text(encoding="utf-8").splitlines() if isinstance(prompts, str) else prompts
        self.prompts = [line.strip() for line in lines if line.strip()]
        if not self.prompts:
            raise ValueError(f"prompts holds no caption: {prompts!r}")
        self.batch_size = batch_size

    def predict_dataloader(self) -> DataLoader:
        """Return the captions in their order."""
        rows: Any = list(enumerate(self.prompts))
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=_collate)


def _collate(rows: list[tuple[int, str]]) -> dict[str, Any]:
    return {"index": torch.tensor([i for i, _ in rows]), "caption": [caption for _, caption in rows]}
