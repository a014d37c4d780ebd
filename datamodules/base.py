"""What the datamodules of all modalities share: files, splits, loaders that keep their position, ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from pl_prefopt.datamodules.files.cache import cache_folder
from pl_prefopt.datamodules.files.open import open_source
from pl_prefopt.datamodules.files.readers import Source, same_content
from pl_prefopt.datamodules.files.splits import Files, Splits
from pl_prefopt.datamodules.loading.batches import EvalBatches, Share, TrainBatches
from pl_prefopt.datamodules.loading.loader import BatchPlan, PlannedLoader, TrainPlan
from pl_prefopt.datamodules.loading.mixed import SourceBatches
from pl_prefopt.datamodules.loading.stream import StreamLoader
from pl_prefopt.utilities.checks import choice, integer
from pl_prefopt.utilities.configurable import to_config

Loaders = PlannedLoader | list[PlannedLoader]
Settings = TypeVar("Settings")


class RandomAccessRows(Protocol):
    """Rows of any modality: `rows[i]` for `collate`, and what a row costs."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) cost of a row; only the order matters."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class FileRows(RandomAccessRows, Protocol):
    """Rows that were read from files."""

    @property
    def source_rows(self) -> np.ndarray:
        """(N,) number (from 0) of the row in the file that each row came from."""
        ...


class PreferenceDataModule(pl.LightningDataModule):
    """Loaders over `datasets`, with the `collate` of a modality.

    `datasets` maps "train", "val", "test", or "val/<name>" where a split has several sets, to random-access rows.

    A modality that reads files passes `splits` and defines `load_rows`, `split_rows` and `collate`; the rest (stages,
    validation fractions, named sources, replaced training rows) is done here. A datamodule of another kind fills
    `datasets` and `collate` in its own `setup`.

    The position of the training loader is kept in the checkpoint twice: by Lightning's fit loop and by this class,
    because the loop does not restore it when `estimated_stepping_batches` was read while the optimizers were made.

    Args:
        batch_size: rows per device and micro-batch.
        eval_batch_size: the same in evaluation; None means `batch_size`.
        length_buckets: group rows of similar length.
        drop_last: False keeps rows that do not fill an optimizer step (one device only).
        num_workers: worker processes per loader.
        seed: seed of the order; that of epoch e depends on (seed, e) only.
        shuffle: False keeps the order of the file in every epoch.
        splits: which files belong to which data set.
        columns: our column name -> the file's.
        on_bad_row: "error" stops at the first row that cannot be used, "drop" leaves such rows out and counts them.
        cache_dir: folder of what is computed once; None: $PL_PREFOPT_CACHE or the user's cache folder.

    Raises:
        ValueError: an argument is out of range.
    """

    known_columns: tuple[str, ...] = ()
    """Columns that `columns` may rename."""

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        length_buckets: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        *,
        splits: Splits | None = None,
        columns: dict[str, str] | None = None,
        on_bad_row: str = "error",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        integer("batch_size", batch_size)
        integer("eval_batch_size", eval_batch_size, optional=True)
        integer("num_workers", num_workers, least=0)
        choice("on_bad_row", on_bad_row, ("error", "drop"))
        for name in columns or ():
            choice("columns", name, self.known_columns)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.length_buckets, self.drop_last, self.num_workers, self.seed = length_buckets, drop_last, num_workers, seed
        self.shuffle, self.on_bad_row = shuffle, on_bad_row
        self.columns = columns or {}
        self.cache_root = cache_folder(cache_dir)
        self.splits = splits or Splits(required=False)
        self.datasets: dict[str, Any] = {}
        self.collate: Callable[[list[Any]], Any] | None = None
        self._sources: dict[str, Source] = {}
        self._given_train: Any = None
        self._given_source: Source | None = None
        self._train_loader: PlannedLoader | StreamLoader | None = None
        self._provider: Callable[[], Files | None] | None = None
        self._train_state: dict[str, Any] | None = None

    def save_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Keep the arguments of `__init__` (its `locals()`) as hyper-parameters, all of them as plain values."""
        plain = {name: _plain(value) for name, value in arguments.items() if name not in ("self", "__class__")}
        self.save_hyperparameters(plain, logger=False)

    # ---- what a modality defines -----------------------------------------------------------------------------------

    def load_rows(self, name: str, *, progress: bool = False) -> Any:
        """Return the rows (`FileRows`) of a data set, from a cache or read now."""
        raise TypeError(f"{type(self).__name__} must define load_rows(name, progress), which reads {name!r}")

    def split_rows(self, rows: Any, fraction: float) -> tuple[Any, Any]:
        """Return (train, val): a share of the rows for validation."""
        raise TypeError(f"{type(self).__name__} must define split_rows(rows, fraction)")

    def rows_opened(self, names: Sequence[str]) -> None:
        """Do what has to be done when data sets were opened or replaced: caches, statistics, `collate`."""

    def write_samples(self, root: Path, name: str, samples: Sequence[Any]) -> list[str]:
        """Keep samples of a policy below `root` under names that begin with `name`; return what rows call them.

        Raises:
            TypeError: this kind of data cannot be written.
        """
        raise TypeError(
            f"{type(self).__name__} must define write_samples(root, name, samples) -> names, for callbacks that train "
            "on samples of the policy"
        )

    def write_pairs(self, root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """Write rows of {"condition", "chosen", "rejected", ...} as `<root>/<name>.jsonl`; return its path.

        The samples are called as `write_samples` called them.

        Raises:
            TypeError: this kind of data cannot be written.
        """
        raise TypeError(
            f"{type(self).__name__} must define write_pairs(root, name, rows) -> path, for callbacks that train on "
            "samples of the policy"
        )

    # ---- files and splits ------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Read and check all files, on one process per node; what was computed is kept in the cache."""
        for name in self.splits.files:
            if not self.streams(name):
                self.load_rows(name, progress=True)
        self._refuse_training_files()

    def setup(self, stage: str | None = None) -> None:
        """Open the rows of a stage; what `prepare_data` has not computed is computed here."""
        wanted = [n for n in self.splits.of_stage(stage) if n not in self.datasets and not self.streams(n)]
        rows = {name: self.load_rows(name) for name in wanted}
        if self.splits.splits_train(stage) and "val" not in self.datasets:
            assert self.splits.fraction is not None
            whole = rows.get("train") or self.datasets.get("train") or self.load_rows("train")
            rows["train"], rows["val"] = self.split_rows(whole, self.splits.fraction)
        self._refuse_training_files()
        self.datasets |= rows
        self.rows_opened(list(rows))

    def _refuse_training_files(self) -> None:
        """Refuse to evaluate on a file that is trained on, under whatever name it comes."""
        if "train" not in self._sources or self.splits.generated:
            return
        training = self.source("train").parts
        for name, source in self._sources.items():
            for part in source.parts if name != "train" else ():
                if any(same_content(part, other) for other in training):
                    raise ValueError(
                        f"{name} must be rows that are not trained on, got {part.name!r}, a file of train. Name "
                        "another file, or hold out a fraction with val: 0.1."
                    )

    def source(self, name: str) -> Source:
        """Return the raw rows of a data set, opened once."""
        if name not in self._sources:
            options: dict[str, Any] = {"streaming": self.streams(name), "cache": self.cache_root}
            self._sources[name] = open_source(self.splits.files[name], name, **options)
        return self._sources[name]

    def streams(self, name: str) -> bool:
        """Whether the rows of a data set are encoded while they are read."""
        return False

    def sources(self) -> dict[str, np.ndarray]:
        """Return name -> row ids of `datasets["train"]`, where `train` names its sources; else an empty dict."""
        if not self.splits.sources:
            return {}
        file = np.searchsorted(self.source("train").ends, self.datasets["train"].source_rows, side="right")
        owner = np.asarray(self.splits.sources)[file]
        return {name: np.flatnonzero(owner == name) for name in self.splits.sources}

    def given_rows(self, split: str) -> Any:
        """Return the rows of the files that the user named, whatever `replace_train` has put in their place."""
        replaced = split == "train" and self._given_train is not None
        return self._given_train if replaced else self.datasets[split]

    def given_source(self, split: str) -> Source:
        """Return the raw rows behind `given_rows`; those of a held-out fraction are training files."""
        name = "train" if split == "val" and self.splits.fraction is not None else split
        return self._given_source if name == "train" and self._given_source is not None else self.source(name)

    def names(self, stage: str) -> list[str]:
        """Return the names of the data sets of "train", "val" or "test", in the order of the loaders."""
        return [name for name in self.datasets if name.split("/")[0] == stage]

    def provide_train(self, files: Callable[[], Files | None] | None) -> None:
        """Ask `files` for the training files whenever a training loader is made; None as answer keeps the present ones.

        Args:
            files: what to ask; None stops asking.
        """
        self._provider = files

    def replace_train(self, files: Files) -> None:
        """Train on the rows of other files, in the standard columns, from the next training loader on.

        Rows that cannot be used are left out and counted.

        Raises:
            ValueError: this datamodule reads no training files.
        """
        if "train" not in self.splits.files:
            raise ValueError(
                f"train must be files for {type(self).__name__} to replace its training rows by {files}, got none"
            )
        if self.splits.files["train"] == files:
            return
        if self._given_train is None:
            self._given_train = self.datasets["train"]
        self.splits.replace_train(files)
        self._given_source = self._given_source or self._sources.pop("train", None)
        self._sources.pop("train", None)
        self.datasets["train"] = self.load_rows("train", progress=self.share().rank == 0)
        self.rows_opened(["train"])

    # ---- loaders ---------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> PlannedLoader | StreamLoader:
        """Return the stateful loader of the training rows, at the position of the checkpoint if there is one."""
        if self._provider is not None and (files := self._provider()) is not None:
            self.replace_train(files)
        self._train_loader = self.make_train_loader()
        if self._train_state is not None and self._resuming():
            self._train_loader.load_state_dict(self._train_state)
        self._train_state = None
        return self._train_loader

    def val_dataloader(self) -> Loaders:
        """Return one loader, or a list of them in the order of `names("val")`."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> Loaders:
        """Return one loader, or a list of them in the order of `names("test")`."""
        return self._eval_loaders("test")

    def predict_dataloader(self) -> Loaders:
        """Return the loaders of the test rows."""
        return self._eval_loaders("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loader."""
        return {} if self._train_loader is None else {"train_loader": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the position for the next training loader."""
        self._train_state = state_dict.get("train_loader")

    def make_train_loader(self) -> PlannedLoader | StreamLoader:
        """Return a loader of the training rows, at their beginning."""
        rows = self.datasets["train"]
        plan = self.train_plan(rows)
        if plan.left_out:
            rank_zero_info(
                f"train: {plan.left_out} of {len(rows)} rows do not fill a complete optimizer step; a different subset "
                "is skipped each epoch"
            )
        return self._loader(rows, plan)

    def train_plan(self, rows: RandomAccessRows) -> TrainPlan:
        """Return which training rows form which batch."""
        sources = self.sources()
        options: dict[str, Any] = {"accumulate": self.accumulate, "seed": self.seed}
        if sources:
            return SourceBatches(sources, self.batch_size, self.share(), **options)
        options |= {"length_buckets": self.length_buckets, "shuffle": self.shuffle, "drop_last": self.drop_last}
        return TrainBatches(rows.lengths, self.batch_size, self.share(), **options)

    def eval_plan(self, name: str, rows: RandomAccessRows) -> BatchPlan:
        """Return which rows of an evaluation set form which batch."""
        size, buckets = self.eval_batch_size, self.length_buckets
        return EvalBatches(rows.lengths, size, self.share(), length_buckets=buckets, name=name)

    def _eval_loaders(self, stage: str) -> Loaders:
        loaders = [
            self._loader(rows, self.eval_plan(n, rows)) for n in self.names(stage) for rows in [self.datasets[n]]
        ]
        return loaders[0] if len(loaders) == 1 else loaders

    def _loader(self, rows: Any, plan: BatchPlan) -> PlannedLoader:
        assert self.collate is not None, "setup must set collate"
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        pinned = device is not None and device.type == "cuda"
        return PlannedLoader(rows, plan, self.collate, num_workers=self.num_workers, pin_memory=pinned)

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step."""
        return getattr(self.trainer, "accumulate_grad_batches", 1)

    def share(self) -> Share:
        """Return this process's rank and the number of processes."""
        if self.trainer is not None:
            return Share(self.trainer.global_rank, self.trainer.world_size)
        ready = dist.is_available() and dist.is_initialized()
        return Share(dist.get_rank(), dist.get_world_size()) if ready else Share()

    def _resuming(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING and bool(self.trainer.ckpt_path)


def settings_of(value: Settings | Mapping[str, Any], kind: type[Settings]) -> Settings:
    """Return a settings object that may have come as plain values, as hyper-parameters of a checkpoint do."""
    return kind(**value) if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return to_config(value)
