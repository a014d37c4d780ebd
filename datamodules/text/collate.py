"""Rows to a batch: right-padded to the longest of the batch, with masks.

Legend: B rows, K completions of a row, P prompt tokens, T completion tokens, M margins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PER_ROW = ("weight", "margin", "preference_prob")
PER_COMPLETION = ("relevance", "ranks", "targets", "margins")


class Collator:
    """Turn rows of `TokenizedRows` into a batch.

    Returns (from `__call__`):
        prompt_ids (B, P) int64, prompt_mask (B, P) bool, completion_ids (B, K, T) int64, completion_mask (B, K, T)
        bool, index (B,) int64, float32 columns as the rows have them, and list_mask (B, K) bool where lists are ragged.

    Args:
        pad_id: what stands outside the masks.
        ragged: whether to give `list_mask`.
    """

    def __init__(self, pad_id: int, *, ragged: bool = False) -> None:
        self.pad_id = pad_id
        self.ragged = ragged

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad and stack.

        Raises:
            ValueError: a row has a column that another row of the batch lacks.
        """
        odd = next((r for r in rows if r.keys() != rows[0].keys()), None)
        if odd is not None:
            name = min(odd.keys() ^ rows[0].keys())
            raise ValueError(f"row {odd['index']}: field {name!r}: found in some rows only; accepted: in all or none.")
        count = max(len(r["completion_ids"]) for r in rows)
        prompts = [r["prompt_ids"] for r in rows]
        flat = [ids for r in rows for ids in _filled(r["completion_ids"], count)]
        prompt_ids, prompt_mask = pad(prompts, self.pad_id)
        completion_ids, completion_mask = pad(flat, self.pad_id)
        shape = (len(rows), count, -1)
        batch = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids.view(shape),
            "completion_mask": completion_mask.view(shape),
            "index": torch.tensor([r["index"] for r in rows], dtype=torch.int64),
        }
        for name in rows[0].keys() & set(PER_ROW):
            batch[name] = torch.tensor([r[name] for r in rows], dtype=torch.float32)
        for name in rows[0].keys() & set(PER_COMPLETION):
            batch[name] = _stack([r[name] for r in rows], count)
        sizes = torch.tensor([len(r["completion_ids"]) for r in rows])
        if self.ragged or int(sizes.min()) < count:
            batch["list_mask"] = torch.arange(count) < sizes[:, None]
        return batch


def pad(sequences: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Right-pad integer sequences to the longest: (n, L) int64 and (n, L) bool."""
    longest = max(map(len, sequences))
    ids = np.full((len(sequences), longest), value, np.int64)
    mask = np.zeros((len(sequences), longest), bool)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _filled(completions: list[list[int]], count: int) -> list[list[int]]:
    return completions + [[]] * (count - len(completions))


def _stack(values: list[list[Any]], count: int) -> Tensor:
    """(B, K) or (B, K, M) float32; missing items of ragged lists are 0."""
    out = np.zeros((len(values), count, *np.shape(values[0][0])), np.float32)
    for i, items in enumerate(values):
        out[i, : len(items)] = items
    return torch.from_numpy(out)
