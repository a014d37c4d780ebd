"""From the arguments `train`, `val` and `test` to named sets of files, and a share of the rows as validation."""

from __future__ import annotations

from typing import Any

import numpy as np

from pl_prefopt.datamodules.base import Files
from pl_prefopt.datamodules.text.rows import TokenizedRows


def origins(train: dict[str, Files]) -> list[tuple[str, str]]:
    """Return (source, path) for every path of every source, in order."""
    return [(n, p) for n, files in train.items() for p in ([files] if isinstance(files, str) else files)]


def named_files(train: Any, val: Any, test: Any) -> dict[str, Files]:
    """Return "train", "val", "test", "val/<name>" and so on -> files.

    Raises:
        ValueError: nothing is given, or a fraction out of range.
    """
    files: dict[str, Files] = {} if train is None else {"train": train}
    fraction = isinstance(val, (int, float))
    if fraction and (train is None or not 0 < val < 1):
        raise ValueError(f"val: found {val}; accepted: a fraction in (0, 1) of the rows of train, or files.")
    for stage, spec in (("val", None if fraction else val), ("test", test)):
        if isinstance(spec, dict):
            files |= {f"{stage}/{name}": path for name, path in spec.items()}
        elif spec is not None:
            files[stage] = spec
    if not files:
        raise ValueError("train, val, test: none is given; accepted: at least one path or dataset name.")
    return files


def split_rows(rows: TokenizedRows, fraction: float, seed: int) -> tuple[TokenizedRows, TokenizedRows]:
    """Return (train, val): a share of the rows, drawn by the seed, for validation.

    Raises:
        ValueError: one side would be empty.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    count = round(len(rows) * fraction)
    if not 0 < count < len(rows):
        raise ValueError(
            f"val: fraction {fraction} of {len(rows)} rows leaves {count} for validation; accepted: "
            "at least one on both sides."
        )
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))
