"""Checkpoints of trainable tensors: what goes in, what is refused on the way back, and the parts that never train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys as IncompatibleKeys
from typing_extensions import Self

from pl_prefopt.modules.checkpoint_io import CheckedCheckpointIO, check_intact
from pl_prefopt.modules.signals import DeferredSignals
from pl_prefopt.utilities.configurable import updated_config

Checkpoint = dict[str, Any]
"""What `torch.load` gives: state dicts and plain values, of Lightning and of every callback."""


class TrainableCheckpoints(pl.LightningModule):
    """A module whose checkpoints hold trainable tensors only, and whose frozen parts stay frozen.

    Frozen parts (references, teachers, encoders) are rebuilt from the hyper-parameters, so a checkpoint of adapters is
    megabytes. What is missing, unexpected or of another shape is refused by name, and so are other hyper-parameters.

    A checkpoint always holds the state after a whole optimizer step, its file is complete and checked when it is read
    (`CheckedCheckpointIO`), and signals that end a run wait for the step (`DeferredSignals`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self._signals = DeferredSignals()

    def frozen_modules(self) -> list[nn.Module]:
        """Submodules that never train and never leave eval mode."""
        return []

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of everything that is not frozen."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def setup(self, stage: str) -> None:
        """Write and read checkpoints safely, unless the Trainer has a plugin of another class for that."""
        if self._trainer is None:
            return
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = CheckedCheckpointIO()

    def on_fit_start(self) -> None:
        """Start in training mode: `from_pretrained` returns networks in eval mode, and Lightning leaves them there."""
        self.train()

    def on_train_start(self) -> None:
        """Let signals that end the run wait for a whole optimizer step."""
        self._signals.install(self.trainer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Act on the signals received, after an optimizer step and after all callbacks."""
        if not self.automatic_optimization or batches_since_step(self.trainer) == 0:
            self._signals.act(self.trainer)

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep trainable tensors only, and the position in the data of the last optimizer step.

        Raises:
            ValueError: weights that are not finite, so that the last checkpoint stays a good one.
        """
        keep_trainable(self, checkpoint)
        if self._trainer is not None and self.automatic_optimization:
            rewind_to_step(checkpoint, batches_since_step(self.trainer))
            complete_last_batch(checkpoint, self.trainer.num_training_batches)
        broken = [k for k, v in checkpoint["state_dict"].items() if not bool(torch.isfinite(v).all())]
        if broken:
            raise ValueError(
                f"the weights must be finite to be saved, got {broken[0]} and {len(broken) - 1} others with infinite "
                f"or NaN entries after optimizer step {checkpoint.get('global_step')}. The checkpoints before this one "
                "are good: resume from the last of them with a lower learning rate."
            )

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:  # pyright: ignore
        """Build a module from a checkpoint, which is refused when its file is damaged."""
        if isinstance(checkpoint_path, (str, Path)):
            check_intact(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = False, assign: bool = False
    ) -> IncompatibleKeys:
        """Load trainable tensors; frozen ones are rebuilt, so their absence is not reported."""
        keys = super().load_state_dict(state_dict, strict=strict, assign=assign)
        trainable = trainable_tensors(self)
        keys.missing_keys[:] = [key for key in keys.missing_keys if key in trainable]
        return keys

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint of another model, and, under a Trainer, of other hyper-parameters."""
        self.configure_model()
        if self._trainer is not None:
            compare_hparams(dict(self.hparams), checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        if "state_dict" in checkpoint:  # ModelParallelStrategy has filled the shards already
            source = None if self._trainer is None else self._trainer.ckpt_path
            check_state(self, checkpoint, str(source or "the checkpoint"))


def batches_since_step(trainer: pl.Trainer) -> int:
    """Micro-batches whose gradients wait for their optimizer step; the last batch of an epoch always has one."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if progress.is_last_batch or progress.current.ready == trainer.num_training_batches:
        return 0
    return progress.current.ready % trainer.accumulate_grad_batches


def rewind_to_step(checkpoint: Checkpoint, batches: int) -> None:
    """Let a checkpoint written `batches` micro-batches after an optimizer step say that it was written at the step.

    The weights are those of the step, and the gradients accumulated since are not saved: on resuming, their
    micro-batches are read again. Loaders count their batches as `position` (or `batches`, those of streams).
    """
    if not batches:
        return
    fit_loop = checkpoint["loops"]["fit_loop"]
    progress = fit_loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        after = counts["ready"] - batches
        counts.update(dict.fromkeys(counts, after))
    # the fit loop and the datamodule save the same loader, see PreferenceDataModule
    loaders = [value.get("train_loader") for value in checkpoint.values() if isinstance(value, dict)]
    for state in [*fit_loop["state_dict"].get("combined_loader", []), *loaders]:
        if isinstance(state, dict):
            state.update({name: state[name] - batches for name in ("position", "batches", "skip") if name in state})


def complete_last_batch(checkpoint: Checkpoint, batches: float) -> None:
    """Let a checkpoint of the last batch of an epoch say that the batch, but not yet the epoch, is complete.

    A run that resumes from it then ends the epoch and begins the next one. Lightning would begin the next one in the
    middle, without `on_train_epoch_start` and with counts from which a second resumption loses a batch; after a stream,
    whose number of batches is unknown, it would skip an epoch.

    Args:
        checkpoint: changed in place.
        batches: number of batches of an epoch, infinite for a stream.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if progress["is_last_batch"] or progress["current"]["ready"] == batches:
        for counts in (progress["total"], progress["current"]):
            counts["completed"] = counts["processed"]


def trainable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """State-dict entries that receive gradients; tied weights appear under each of their names."""
    return {k: v for k, v in module.state_dict(keep_vars=True).items() if getattr(v, "requires_grad", False)}


def keep_trainable(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Drop from `checkpoint` what can be rebuilt: frozen weights, references, encoders."""
    trainable = trainable_tensors(module)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}


def check_state(module: nn.Module, checkpoint: Checkpoint, source: str = "the checkpoint") -> None:
    """Compare names and shapes of a checkpoint with the trainable tensors of the module.

    Args:
        module: what loads the checkpoint.
        checkpoint: with its `state_dict`.
        source: what an error calls the checkpoint.

    Raises:
        ValueError: tensors missing, unexpected, or of another shape, with the first few named.
    """
    saved, expected = checkpoint.get("state_dict", {}), trainable_tensors(module)
    problems = {
        "missing": sorted(expected.keys() - saved.keys()),
        "unexpected": sorted(saved.keys() - set(module.state_dict())),
        "of another shape": sorted(
            f"{key} {tuple(saved[key].shape)} != {tuple(expected[key].shape)}"
            for key in expected.keys() & saved.keys()
            if saved[key].shape != expected[key].shape
        ),
    }
    parts = [
        f"{len(names)} {problem} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for problem, names in problems.items()
        if names
    ]
    if parts:
        raise ValueError(
            f"{source} belongs to another model; its tensors are {'; '.join(parts)}. "
            "Use the configuration that it was trained with."
        )


def compare_hparams(configured: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse to resume a run under other hyper-parameters.

    Classes that moved to another file and arguments that were added with a default since the checkpoint was written
    make no difference.

    Raises:
        ValueError: listing `name: value in the checkpoint != configured value`.
    """
    before, now = dict(_flat(updated_config(saved))), dict(_flat(configured))
    differing = [
        f"{key}: {before.get(key)!r} != {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing and saved:
        raise ValueError(
            "resuming under other hyper-parameters than the checkpoint's (checkpoint != configured): "
            + "; ".join(differing)
            + ". Resume with the old values, or start a new run from the exported weights."
        )


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
