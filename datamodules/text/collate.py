"""Rows to a batch: right-padded to the longest of the batch, with masks.

Legend: B rows, K completions of a row, P prompt tokens, T completion tokens, M margins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.scores import COLUMNS
from pl_prefopt.utilities.padding import pad_right


class Collator:
    """Turn rows of `TokenizedRows` into a batch.

    Returns (from `__call__`):
        prompt_ids (B, P) int64, prompt_mask (B, P) bool, completion_ids (B, K, T) int64, completion_mask (B, K, T)
        bool, index (B,) int64, the rows' data columns as float32, and list_mask (B, K) bool where lists are ragged.

    Args:
        pad_id: id outside the masks.
        ragged: whether to give `list_mask` in every batch.
    """

    def __init__(self, pad_id: int, *, ragged: bool = False) -> None:
        self.pad_id = pad_id
        self.ragged = ragged

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack.

        Raises:
            ValueError: a row has a column that another row of the batch lacks.
        """
        differing = next((r for r in rows if r.keys() != rows[0].keys()), None)
        if differing is not None:
            name = min(differing.keys() ^ rows[0].keys())
            raise ValueError(f"row {differing['index']}: field {name!r} must be in all rows or in none, got it in some")
        count = max(len(r["completion_ids"]) for r in rows)
        prompts = [r["prompt_ids"] for r in rows]
        completions = [ids for r in rows for ids in r["completion_ids"] + [[]] * (count - len(r["completion_ids"]))]
        prompt_ids, prompt_mask = pad_right(prompts, self.pad_id)
        completion_ids, completion_mask = pad_right(completions, self.pad_id)
        shape = (len(rows), count, -1)
        batch = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids.view(shape),
            "completion_mask": completion_mask.view(shape),
            "index": torch.tensor([r["index"] for r in rows], dtype=torch.int64),
        }
        for name in rows[0].keys() & COLUMNS.keys():
            values = [r[name] for r in rows]
            is_row = COLUMNS[name].per == "row"
            batch[name] = torch.tensor(values, dtype=torch.float32) if is_row else _stack(values, count)
        sizes = torch.tensor([len(r["completion_ids"]) for r in rows])
        if self.ragged or int(sizes.min()) < count:
            batch["list_mask"] = torch.arange(count) < sizes[:, None]
        return batch


def _stack(values: list[list[Any]], count: int) -> Tensor:
    """(B, K) or (B, K, M) float32; missing items of ragged lists are 0."""
    stacked = np.zeros((len(values), count, *np.shape(values[0][0])), np.float32)
    for row, items in enumerate(values):
        stacked[row, : len(items)] = items
    return torch.from_numpy(stacked)
