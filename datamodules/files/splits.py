"""From the arguments `train`, `val`, `test` and `limit` to named sets of files."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pl_prefopt.utilities.checks import choice, integer

Files = str | list[str]
Train = Files | dict[str, Files]
Val = float | str | list[str] | dict[str, Files]
Test = str | list[str] | dict[str, Files]

SPLITS = ("train", "val", "test")
STAGES: Mapping[str | None, tuple[str, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
    None: SPLITS,
}
"""Lightning's stage -> the splits that it needs."""


class Splits:
    """Which files belong to which data set.

    `files` maps "train", "val", "test", or "val/<name>" where a split has several sets, to files.

    Args:
        train: files, or a dict name -> files of at least two sources.
        val: files, a dict name -> files, or a fraction in (0, 1) of the training rows.
        test: files, or a dict name -> files.
        limit: number of rows of each split, or a dict split -> number.
        required: whether at least one of the three must be given.

    Raises:
        ValueError: nothing is given, a fraction out of range, one source only, or an unknown split in `limit`.
    """

    def __init__(
        self,
        train: Train | None = None,
        val: Val | None = None,
        test: Test | None = None,
        limit: int | dict[str, int] | None = None,
        *,
        required: bool = True,
    ) -> None:
        if isinstance(train, dict) and len(train) < 2:
            raise ValueError(
                f"train must be a path, a list of paths, or at least two named sources, got the sources {sorted(train)}"
            )
        named = {name: [paths] if isinstance(paths, str) else paths for name, paths in _items(train)}
        self.sources = [name for name, paths in named.items() for _ in paths]
        """Name of the source of each training file, in order; empty where `train` names no sources."""
        self.fraction = float(val) if isinstance(val, (int, float)) else None
        if self.fraction is not None and (train is None or not 0 < self.fraction < 1):
            raise ValueError(f"val must be files, or a fraction in (0, 1) of the rows of train, got {val}")
        self.files: dict[str, Files] = {}
        if train is not None:
            self.files["train"] = [path for paths in named.values() for path in paths] or train  # pyright: ignore
        for split, spec in (("val", val), ("test", test)):
            if isinstance(spec, dict):
                self.files |= {f"{split}/{name}": files for name, files in spec.items()}
            elif isinstance(spec, (str, list)):
                self.files[split] = spec
        if required and not self.files:
            raise ValueError("train, val or test must be a path or dataset name, got none of the three")
        self._limits: Mapping[str, int | None] = limit if isinstance(limit, dict) else dict.fromkeys(SPLITS, limit)
        for name, value in self._limits.items():
            choice("limit", name, SPLITS)
            integer("limit", value, optional=True)
        self.generated = False
        """Whether the training files were replaced."""

    def of_stage(self, stage: str | None) -> list[str]:
        """Return the names of the data sets that a stage of Lightning reads from files of their own."""
        return [name for name in self.files if name.partition("/")[0] in STAGES[_text(stage)]]

    def splits_train(self, stage: str | None) -> bool:
        """Whether a stage needs validation rows that are taken from the training files."""
        return self.fraction is not None and "val" in STAGES[_text(stage)]

    def limit(self, name: str) -> int | None:
        """Return the greatest number of rows of a data set, None for all; generated rows are never limited."""
        return None if name == "train" and self.generated else self._limits.get(name.partition("/")[0])

    def replace_train(self, files: Files) -> None:
        """Take the training rows from other files, which have no named sources and no limit."""
        self.files["train"] = files
        self.sources, self.generated = [], True


def _items(train: Train | None) -> list[tuple[str, Files]]:
    return list(train.items()) if isinstance(train, dict) else []


def _text(stage: str | None) -> str | None:
    """The word of a stage, which Lightning gives as an enumeration of texts."""
    return getattr(stage, "value", stage)


def split_indices(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row ids of (train, val): a share of the rows, drawn by the seed, for validation.

    Raises:
        ValueError: one side would be empty.
    """
    order = np.random.default_rng(seed).permutation(count)
    held_out = round(count * fraction)
    if not 0 < held_out < count:
        raise ValueError(
            f"val must be a fraction that leaves at least one row on both sides, got {fraction} of {count} rows, "
            f"which is {held_out}"
        )
    return np.sort(order[held_out:]), np.sort(order[:held_out])
