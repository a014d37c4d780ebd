"""What the data modules of all modalities share: loaders that keep their place, splits, ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy as np
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from pl_prefopt.datamodules.files.checks import positive
from pl_prefopt.datamodules.loading.batches import EvalBatches, Share, TrainBatches
from pl_prefopt.datamodules.loading.loader import BatchPlan, PlannedLoader
from pl_prefopt.datamodules.loading.mixed import SourceBatches
from pl_prefopt.datamodules.media.samples import write_picture_pairs, write_pictures

Loaders = PlannedLoader | list[PlannedLoader]
Files = str | list[str]


class RandomAccessRows(Protocol):
    """Rows of any modality: `rows[i]` for `collate`, and what a row costs."""

    lengths: np.ndarray

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class PreferenceDataModule(pl.LightningDataModule):
    """Loaders over `datasets`, which a modality's `setup` fills, with its `collate`.

    `datasets` maps "train", "val", "test", or "val/<name>" where a stage has several sets, to random-access rows.
    The training loader's position is kept in the checkpoint twice: by Lightning's fit loop, and by this class, because
    the loop forgets to restore it when `estimated_stepping_batches` was read while the optimizers were made.

    Args:
        batch_size: rows per device and micro-batch.
        eval_batch_size: the same in evaluation; None means `batch_size`.
        length_buckets: group rows of like length.
        shuffle: False keeps the order of the file in every epoch.
        drop_last: False keeps rows that do not fill an optimiser step (one device only).
        num_workers: worker processes per loader.
        seed: seed of the order; that of epoch e depends on (seed, e) only.
    """

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        length_buckets: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        positive("batch_size", batch_size)
        positive("eval_batch_size", eval_batch_size, none=True)
        positive("num_workers", num_workers + 1 if isinstance(num_workers, int) else num_workers)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.length_buckets, self.drop_last, self.num_workers, self.seed = length_buckets, drop_last, num_workers, seed
        self.shuffle = shuffle
        self.datasets: dict[str, Any] = {}
        self.collate: Callable[[list[Any]], Any] | None = None
        self._train_loader: Any = None
        self._provider: Callable[[], Files | None] | None = None
        self._train_state: dict[str, Any] | None = None

    def sources(self) -> dict[str, np.ndarray]:
        """Return name -> row ids of the sources of the training rows; empty where they have no names."""
        return {}

    def names(self, stage: str) -> list[str]:
        """Return the names of the data sets of "train", "val" or "test", in the order of the loaders."""
        return [n for n in self.datasets if n.split("/")[0] == stage]

    def write_samples(self, root: Path, name: str, samples: Sequence[Any]) -> list[str]:
        """Keep samples of a policy below `root` under names that begin with `name`; return what rows call them.

        Pictures become PNG files, named by their paths below `root`.
        """
        return write_pictures(root, name, samples)

    def write_pairs(self, root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
        """Write rows of {"condition", "chosen", "rejected", ...} as `<root>/<name>.jsonl`; return its path.

        The samples are called as `write_samples` called them.
        """
        return write_picture_pairs(root, name, rows)

    def provide_train(self, files: Callable[[], Files | None] | None) -> None:
        """Ask `files` for the training files whenever a training loader is made; None: keep those there are."""
        self._provider = files

    def replace_train(self, files: Files) -> None:
        """Train on the rows of other files from the next training loader on.

        Raises:
            ValueError: this kind of data cannot.
        """
        raise ValueError(f"{type(self).__name__} cannot replace its training rows by {files}; it has no replace_train")

    def train_dataloader(self) -> Any:
        """Return the stateful loader of the training rows, at the position of the checkpoint if there is one."""
        if self._provider is not None and (files := self._provider()) is not None:
            self.replace_train(files)
        self._train_loader = self._make_train_loader()
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

    def _make_train_loader(self) -> Any:
        rows = self.datasets["train"]
        accumulate = getattr(self.trainer, "accumulate_grad_batches", 1)
        sources = self.sources()
        if sources:
            mixed = SourceBatches(sources, self.batch_size, self.share(), accumulate=accumulate, seed=self.seed)
            return self._loader(rows, mixed)
        plan = TrainBatches(
            rows.lengths,
            self.batch_size,
            self.share(),
            accumulate=accumulate,
            seed=self.seed,
            length_buckets=self.length_buckets,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        )
        if plan.left_out:
            rank_zero_info(
                f"train: {plan.left_out} of {len(rows)} rows do not fill an optimiser step; each epoch other rows rest"
            )
        return self._loader(rows, plan)

    def _eval_loaders(self, stage: str) -> Loaders:
        loaders = []
        for name in self.names(stage):
            lengths = self.datasets[name].lengths
            plan = EvalBatches(
                lengths, self.eval_batch_size, self.share(), length_buckets=self.length_buckets, name=name
            )
            loaders.append(self._loader(self.datasets[name], plan))
        return loaders[0] if len(loaders) == 1 else loaders

    def _loader(self, rows: Any, plan: BatchPlan) -> PlannedLoader:
        assert self.collate is not None, "setup must set collate"
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        pinned = device is not None and device.type == "cuda"
        return PlannedLoader(rows, plan, self.collate, num_workers=self.num_workers, pin_memory=pinned)

    def share(self) -> Share:
        """Return this process's rank and the number of processes."""
        if self.trainer is not None:
            return Share(self.trainer.global_rank, self.trainer.world_size)
        ready = dist.is_available() and dist.is_initialized()
        return Share(dist.get_rank(), dist.get_world_size()) if ready else Share()

    def _resuming(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING and bool(self.trainer.ckpt_path)
