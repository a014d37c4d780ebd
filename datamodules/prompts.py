"""`PromptDataModule`: captions to draw images for, without any pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pl_prefopt.utilities.checks import integer


class CaptionBatch(TypedDict):
    """Captions and their numbers."""

    index: Tensor
    caption: list[str]


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
        integer("batch_size", batch_size)
        if isinstance(prompts, str) and not Path(prompts).is_file():
            raise ValueError(
                f"prompts must be a list, or an existing text file with one caption a line, got no file {prompts!r}"
            )
        lines = Path(prompts).read_text(encoding="utf-8").splitlines() if isinstance(prompts, str) else prompts
        self.prompts = [line.strip() for line in lines if line.strip()]
        if not self.prompts:
            raise ValueError(f"prompts must be captions, got {prompts!r}, which holds no caption")
        self.batch_size = batch_size

    def predict_dataloader(self) -> DataLoader[tuple[int, str]]:
        """Return the captions in their order."""
        return DataLoader(_Captions(self.prompts), batch_size=self.batch_size, collate_fn=_collate)


class _Captions(Dataset[tuple[int, str]]):
    def __init__(self, captions: list[str]) -> None:
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[int, str]:
        return index, self.captions[index]


def _collate(rows: list[tuple[int, str]]) -> CaptionBatch:
    return {"index": torch.tensor([i for i, _ in rows]), "caption": [caption for _, caption in rows]}
