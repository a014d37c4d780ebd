"""Weights in the format of their ecosystem, beside every checkpoint and at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
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
from pl_prefopt.utilities.files import write_text
from pl_prefopt.utilities.sharding import whole


class AdapterExport(pl.Callback):
    """Write adapters (peft) or whole models (transformers) that their own loaders read, with a model card.

    A module with a method `export(folder)` writes itself (diffusion pipelines do). Every other module is written by the
    policy's `save_pretrained` in safetensors; a tokenizer of the datamodule is saved beside it.

    Args:
        path: folder; None: `export` in the run folder. Checkpoint exports go to `path/step-<n>`.
        at_checkpoints: also export whenever a checkpoint is written; False: only at the end.

    Raises:
        TypeError: in `setup`, a module without `policy`, or a policy without `save_pretrained`.
    """

    def __init__(self, path: str | None = None, at_checkpoints: bool = True) -> None:
        self.path = path
        self.at_checkpoints = at_checkpoints

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
        """Export beside a checkpoint."""
        if self.at_checkpoints:
            self._export(trainer, pl_module, run_folder(trainer, self.path, "export") / f"step-{trainer.global_step}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the final weights."""
        if not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._export(trainer, pl_module, run_folder(trainer, self.path, "export"))

    def _export(self, trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path) -> None:
        """Every rank takes part in gathering shards; the first one writes."""
        policy = cast(HasPolicy, pl_module).policy
        options: dict[str, Any] = {}
        if pl_module.device_mesh is not None and not isinstance(pl_module, Exports):
            options["state_dict"] = {k: whole(v).cpu() for k, v in policy.state_dict().items()}
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
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
