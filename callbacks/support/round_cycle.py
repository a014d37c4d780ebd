"""The life cycle that callbacks which train in rounds of their policy's own samples share."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from pl_prefopt.callbacks.support.evaluation import evaluating
from pl_prefopt.callbacks.support.moving_reference import (
    check_can_move,
    load_reference,
    move_reference,
    save_reference,
)
from pl_prefopt.callbacks.support.protocols import (
    HasMovingSamples,
    HasSamples,
    Row,
    Sample,
    Samples,
    TrainsOnSamples,
    datamodule_of,
    require,
)
from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.rounds.files import RoundFiles, SampledRow, round_name
from pl_prefopt.utilities.checks import integer
from pl_prefopt.utilities.digests import file_digest
from pl_prefopt.utilities.files import track

Data = TypeVar("Data", bound=TrainsOnSamples)
REFERENCE_KEY = "ReferenceSync{'every_n_steps': 1, 'alpha': 1.0}"
"""Where checkpoints hold the reference of a round; the key of the first versions, which used that callback."""


class RoundCycle(pl.Callback, ABC, Generic[Data]):
    """Makes the training file of each round, from samples of the policy, when the training loader asks for it.

    `setup` registers the callback with the datamodule, which then calls it at every training loader, hence at the
    start of every epoch. At the first epoch of a round the subclass prepares its file; the other epochs of the round
    get the same file. Folder `round-<n>` below the root holds the pieces of samples and `pairs.jsonl`.

    A subclass says what a round is.

    Args:
        data: members that the datamodule must have.
        rounds: number of rounds, after which training ends; None: as long as the Trainer trains.
        epochs_per_round: epochs on the file of a round, >= 1.
        sync_reference: the reference moves between rounds and is kept in checkpoints.
        sampling: options of the module's `sample`.
        piece: conditions that are sampled and written at once, >= 1.
        seed: key of all random numbers.
        path: folder of the rounds; None: `rounds` in the run folder, which a resumed run continues.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        data: type,
        rounds: int | None,
        epochs_per_round: int,
        sync_reference: bool,
        sampling: dict[str, Any] | None,
        piece: int,
        seed: int,
        path: str | None,
    ) -> None:
        integer("rounds", rounds, optional=True)
        integer("epochs_per_round", epochs_per_round)
        integer("piece", piece)
        self.rounds, self.epochs_per_round, self.sync_reference = rounds, epochs_per_round, sync_reference
        self.sampling, self.piece, self.seed, self.path = sampling or {}, piece, seed, path
        self.round = -1
        self._data_protocol = data
        self._root: str | None = path
        self._digest: str | None = None
        self._trainer: pl.Trainer | None = None

    @abstractmethod
    def prepare_round(self, number: int) -> bool:
        """Sample, and write the training file of a round with `write_pairs`; return False to end training instead."""

    # ---- parts for subclasses --------------------------------------------------------------------------------------

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer of the running fit."""
        assert self._trainer is not None, "rounds exist during a fit only"
        return self._trainer

    @property
    def module(self) -> HasSamples:
        """The module of the running fit."""
        return cast(HasSamples, self.trainer.lightning_module)

    @property
    def data(self) -> Data:
        """The datamodule of the running fit."""
        return cast(Data, datamodule_of(self.trainer))

    @property
    def root(self) -> Path:
        """Folder of all rounds."""
        assert self._root is not None, "known from the first training loader on"
        return Path(self._root)

    def folder(self, number: int) -> Path:
        """Folder of a round."""
        return self.root / round_name(number)

    def move_reference(self) -> None:
        """Make the policy the reference."""
        move_reference(self.trainer.lightning_module)

    def sample(self, conditions: Sequence[str], count: int, seed: int) -> Samples:
        """Return `count` samples per condition, drawn in the precision of the Trainer."""
        with self.trainer.precision_plugin.forward_context():
            return self.module.sample(conditions, count, seed, **self.sampling)

    def sample_pieces(
        self, number: int, key: str, conditions: Sequence[str], make: Callable[[RoundFiles, int], list[SampledRow]]
    ) -> list[SampledRow]:
        """Write the missing pieces of a round, shared by the ranks, and return the rows of all pieces.

        Args:
            number: number of the round.
            key: digest of what the samples depend on; pieces of another key are made again.
            conditions: conditions of the round.
            make: called with the files and the index of a piece, in eval mode and without gradient; returns its rows.
        """
        trainer, module = self.trainer, self.trainer.lightning_module
        files = RoundFiles(self.root, number, key, conditions, self.piece)
        # Every forward pass of a policy that is sharded over ranks needs all ranks, so all make the same pieces.
        sharded = module.device_mesh is not None
        todo = files.missing() if sharded else files.missing(trainer.global_rank, trainer.world_size)
        with evaluating(module), torch.no_grad():
            for index in track(
                todo,
                f"round {number}: samples",
                unit="condition",
                size=lambda index: len(files.parts.items(index)),
                hidden=not trainer.is_global_zero,
            ):
                files.write(index, make(files, index))
        trainer.strategy.barrier("rounds: samples")
        return files.rows()

    def write_samples(self, name: str, samples: Sequence[Sample]) -> list[str]:
        """Write samples below the root; return what rows call them."""
        return self.data.write_samples(self.root, name, samples)

    def write_pairs(self, number: int, rows: Sequence[Row]) -> None:
        """Write the training file of a round, on the first rank; the others wait."""
        if self.trainer.is_global_zero:
            self.data.write_pairs(self.root, f"{round_name(number)}/pairs", rows)
        self.trainer.strategy.barrier("rounds: pairs")

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Log `rounds/<name>` at the present optimizer step."""
        for logger in self.trainer.loggers:
            logger.log_metrics({f"rounds/{k}": v for k, v in values.items()}, step=self.trainer.global_step)

    def stop(self, reason: str) -> None:
        """End training after the present epoch."""
        rank_zero_info(f"training ends: {reason}")
        self.trainer.should_stop = True

    # ---- life cycle ------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate module, datamodule and reference, and register as the source of training files."""
        if stage != "fit":
            return
        pl_module.configure_model()
        require(pl_module, self, HasMovingSamples if self.sync_reference else HasSamples)
        name, data = type(self).__name__, datamodule_of(trainer)
        if data is None:
            raise ValueError(f"datamodule must be given to {name}, got loaders only. Use Trainer.fit(datamodule=...)")
        require(data, self, self._data_protocol)
        if getattr(getattr(pl_module, "reference", None), "cached", False):
            raise ValueError(
                f"reference must be one that scores any row, got a cached one. {name} trains on new rows, for which no "
                "reference values are cached: use reference: FrozenCopy for full fine-tuning or reference: AdapterCopy "
                "with adapters"
            )
        if self.sync_reference:
            check_can_move(pl_module)
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        self._trainer = trainer
        self.data.provide_train(self._training_file)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Unregister from the datamodule."""
        if self._trainer is not None:
            self.data.provide_train(None)
            self._trainer = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End training with the last epoch of the last round."""
        if self.rounds is not None and trainer.current_epoch + 1 >= self.rounds * self.epochs_per_round:
            self.stop(f"all {self.rounds} rounds are done")

    def _training_file(self) -> str | None:
        """Path of the training file of the coming epoch, prepared now if its round has not begun."""
        if self._root is None:  # here, where all ranks pass, as `run_folder` requires
            self._root = str(run_folder(self.trainer, None, "rounds"))
        if self.trainer.current_epoch // self.epochs_per_round > self.round:
            number = self.round + 1
            if self.rounds is not None and number >= self.rounds:
                self.stop(f"all {self.rounds} rounds are done")
            else:
                close_epoch(self.trainer)
                if self.prepare_round(number):
                    self.round, self._digest = number, file_digest(self._pairs_file(number))
        return str(self._pairs_file(self.round)) if self.round >= 0 else None

    def _pairs_file(self, number: int) -> Path:
        return self.folder(number) / "pairs.jsonl"

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the round, the folder of all rounds, and a digest of the training file."""
        return {"round": self.round, "root": self._root, "digest": self._digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the round of the checkpoint, on the same training file.

        Raises:
            ValueError: the file is missing or has changed.
        """
        self.round, self._digest = state_dict["round"], state_dict.get("digest")
        self._root = self.path or state_dict.get("root")
        if self.round < 0 or self._digest is None:  # self-play of earlier versions saved neither folder nor digest
            return
        file = self._pairs_file(self.round)
        if not file.is_file() or file_digest(file) != self._digest:
            raise ValueError(
                f"{file} {'has changed' if file.is_file() else 'is missing'}, but the checkpoint lies in round "
                f"{self.round}, which trains on it. Restore the file, or give the folder of the rounds as path"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the reference of the round."""
        if self.sync_reference:
            save_reference(pl_module, checkpoint, REFERENCE_KEY)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the reference of the round."""
        if self.sync_reference:
            load_reference(pl_module, checkpoint, REFERENCE_KEY)


def close_epoch(trainer: pl.Trainer) -> None:
    """After a resume at the last batch of an epoch: let Lightning start the next epoch at its first batch.

    A checkpoint that was saved by `on_train_batch_end` of the last batch leaves the epoch open. On restart Lightning
    increments the counter of completed batches and regards the epoch as done when the counter reaches the length of
    the training loader. By then that loader is already the next round's, so with a longer round Lightning would go on
    in its middle and skip the batches before. A counter beyond any length closes the epoch whatever the loader is.
    """
    loop = trainer.fit_loop.epoch_loop
    if loop.restarting and loop.batch_progress.is_last_batch:
        loop.batch_progress.current.completed = sys.maxsize
