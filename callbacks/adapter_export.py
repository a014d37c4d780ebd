"""Weights in the format of their ecosystem, beside every checkpoint and at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from pl_prefopt.callbacks.support.protocols import (
    Exports,
    HasDigest,
    HasPolicy,
    SavesPretrained,
    datamodule_of,
    require,
)
from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.utilities.checksums import NAME as CHECKSUMS
from pl_prefopt.utilities.checksums import write_checksums
from pl_prefopt.utilities.files import sweep, temporary_name, write_text
from pl_prefopt.utilities.sharding import whole


class AdapterExport(pl.Callback):
    """Write adapters (peft) or whole models (transformers) that their own loaders read, with a model card.

    A module with a method `export(folder)` writes itself (diffusion pipelines do). Every other module is written by the
    policy's `save_pretrained` in safetensors; a tokenizer of the datamodule is saved beside it. Files are complete or
    absent, and `checksums.json` holds their CRC-32, which the policies of this library compare when they read them.

    Args:
        path: folder; None: `export` in the run folder. Checkpoint exports go to `path/step-<n>`, and are deleted when
            the checkpoint callbacks have deleted their checkpoints of that step.
        at_checkpoints: also export whenever a checkpoint is written; False: only at the end.

    Raises:
        TypeError: in `setup`, a module without `policy`, or a policy without `save_pretrained`.
        ValueError: at the end, weights that are not finite.
    """

    def __init__(self, path: str | None = None, at_checkpoints: bool = True) -> None:
        self.path = path
        self.at_checkpoints = at_checkpoints
        self._steps: set[int] = set()
        self._outdated = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate that there is something to export."""
        pl_module.configure_model()
        module = require(pl_module, self, HasPolicy)
        if not isinstance(pl_module, Exports) and not isinstance(module.policy, SavesPretrained):
            name = type(pl_module).__name__
            raise TypeError(
                f"AdapterExport requires {name}.export(folder) or {name}.policy.save_pretrained(folder), which are not "
                f"defined: {type(module.policy).__name__} has no save_pretrained; give {name} a method export(folder)"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Export beside a checkpoint, once per optimizer step."""
        # a module refuses to be saved with weights that are not finite, but its turn comes after the callbacks'
        step = trainer.global_step
        if self.at_checkpoints and step not in self._steps and is_finite(cast(HasPolicy, pl_module)):
            self._steps.add(step)
            self._outdated = True
            self._export(trainer, pl_module, run_folder(trainer, self.path, "export") / f"step-{step}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the export of the checkpoint from which the run resumes."""
        if self.at_checkpoints and trainer.global_step:
            self._steps.add(trainer.global_step)
            self._outdated = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Delete the exports whose checkpoints were deleted for the last one."""
        if self._outdated:
            self._outdated = False
            self._delete_outdated(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the final weights."""
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        if not is_finite(cast(HasPolicy, pl_module)):
            raise ValueError(
                "the weights must be finite to be exported, got infinite or NaN entries at the end of training. Train "
                "again with a lower learning rate."
            )
        self._export(trainer, pl_module, run_folder(trainer, self.path, "export"))
        self._delete_outdated(trainer)

    def _delete_outdated(self, trainer: pl.Trainer) -> None:
        folder = run_folder(trainer, self.path, "export")  # a collective
        if not trainer.is_global_zero or not self.at_checkpoints:
            return
        kept = checkpoint_steps(trainer)
        if kept is None:
            return
        for step in self._steps - kept:  # not what an earlier run left in this folder
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)
        self._steps &= kept

    def state_dict(self) -> dict[str, Any]:
        """Return the steps whose exports are there."""
        return {"steps": sorted(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the exports of the run that is resumed."""
        self._steps = set(state_dict["steps"])

    def _export(self, trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path) -> None:
        """Every rank takes part in gathering shards; the first one writes, file by file behind a temporary folder."""
        policy = cast(HasPolicy, pl_module).policy
        options: dict[str, Any] = {}
        if pl_module.device_mesh is not None and not isinstance(pl_module, Exports):
            options["state_dict"] = {k: whole(v).cpu() for k, v in policy.state_dict().items()}
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        temporary = folder / temporary_name("export")
        temporary.mkdir(exist_ok=True)
        try:
            self._write(trainer, pl_module, temporary, options)
            move_files(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path, options: dict[str, Any]) -> None:
        policy = cast(HasPolicy, pl_module).policy
        if isinstance(pl_module, Exports):
            pl_module.export(folder)
        elif isinstance(policy, SavesPretrained):
            if hasattr(policy, "get_base_model"):  # peft would also write adapters that are not in use
                options["selected_adapters"] = list(cast(Any, policy).active_adapters)
            policy.save_pretrained(folder, **options)
        tokenizer = getattr(datamodule_of(trainer), "tokenizer", None)
        if isinstance(tokenizer, SavesPretrained):
            tokenizer.save_pretrained(folder)
        write_text(folder / "README.md", model_card(trainer, pl_module))
        for part in [folder, *(f for f in folder.rglob("*") if f.is_dir())]:
            write_checksums(part)


def is_finite(module: HasPolicy) -> bool:
    """Whether all trainable weights of the policy are finite."""
    weights = (p for p in module.policy.parameters() if p.requires_grad)
    return all(bool(torch.isfinite(whole(p.detach())).all()) for p in weights)


def checkpoint_steps(trainer: pl.Trainer) -> set[int] | None:
    """Optimizer steps of the checkpoints that exist; None where there are none, or they cannot be read one by one."""
    steps: set[int] = set()
    if not trainer.checkpoint_callbacks:
        return None
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.dirpath is None or "://" in str(callback.dirpath):
            return None
        for file in Path(callback.dirpath).rglob(f"*{callback.FILE_EXTENSION}"):
            try:
                # of a file that is mapped into memory, only the few bytes beside the tensors are read
                steps.add(torch.load(file, mmap=True, weights_only=True, map_location="cpu")["global_step"])
            except Exception:  # a folder of shards, or the file of somebody else: rather keep too much
                return None
    return steps or None


def move_files(source: Path, target: Path) -> None:
    """Move all files to another folder, `checksums.json` last, so that damage in between does not go unnoticed."""
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name == CHECKSUMS, file)):
        path = target / file.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.replace(path)


def model_card(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    """Markdown: objective and its settings, policy, reference, data digests, metrics."""
    hparams = pl_module.hparams
    rows = getattr(datamodule_of(trainer), "datasets", None) or {}
    sections = {
        "settings": {k: hparams[k] for k in ("objective", "policy", "reference", "seed") if k in hparams},
        "data": {
            name: {"rows": len(split), "sha256": split.digest()}
            for name, split in rows.items()
            if isinstance(split, HasDigest)
        },
        "metrics": {k: round(float(v), 6) for k, v in trainer.callback_metrics.items() if isinstance(v, Tensor)},
    }
    text = "\n\n".join(f"## {k}\n```json\n{json.dumps(v, indent=2, default=str)}\n```" for k, v in sections.items())
    head = "---\nlibrary_name: pl_prefopt\ntags: [preference-optimisation]\n---\n"
    return f"{head}# {type(pl_module).__name__}\n\nTrained for {trainer.global_step} optimizer steps.\n\n{text}\n"
