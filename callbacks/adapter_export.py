"""Weights in the format of their ecosystem, beside every checkpoint and at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.callbacks.support.shared import run_folder
from pl_prefopt.utilities.sharding import whole


class AdapterExport(pl.Callback):
    """Write adapters (peft) or whole models (transformers) that their own loaders read, with a model card.

    A module with a method `export(folder)` writes itself (diffusion pipelines do). All else goes through the policy's
    `save_pretrained` in safetensors; a tokenizer of the datamodule is put beside it.

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
        """Check that there is something to export."""
        pl_module.configure_model()
        require(pl_module, self, "policy")
        if not hasattr(pl_module, "export") and not hasattr(pl_module.policy, "save_pretrained"):
            raise TypeError(
                f"AdapterExport: {type(pl_module.policy).__name__} has no save_pretrained; give "
                f"{type(pl_module).__name__} a method export(folder)"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Export beside a checkpoint."""
        if self.at_checkpoints:
            self._export(trainer, pl_module, run_folder(trainer, self.path, "export") / f"step-{trainer.global_step}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export what training ended with."""
        if not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._export(trainer, pl_module, run_folder(trainer, self.path, "export"))

    def _export(self, trainer: pl.Trainer, module: Any, folder: Path) -> None:
        """Every rank gives its shards, the first one writes."""
        options: dict[str, Any] = {}
        if module.device_mesh is not None and not hasattr(module, "export"):
            options["state_dict"] = {k: whole(v).cpu() for k, v in module.policy.state_dict().items()}
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(module, "export"):
            module.export(folder)
        else:
            if hasattr(module.policy, "get_base_model"):  # peft would also write adapters that are not in use
                options["selected_adapters"] = list(module.policy.active_adapters)
            module.policy.save_pretrained(folder, **options)
        tokenizer = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(folder)  # pyright: ignore[reportOptionalMemberAccess]
        (folder / "README.md").write_text(model_card(trainer, module), encoding="utf-8")


def model_card(trainer: pl.Trainer, module: Any) -> str:
    """Markdown: objective and its settings, policy, reference, data digests, metrics."""
    hparams = {k: module.hparams[k] for k in ("objective", "policy", "reference", "seed") if k in module.hparams}
    rows = getattr(getattr(trainer, "datamodule", None), "datasets", None) or {}
    digests = {name: {"rows": len(d), "sha256": d.digest()} for name, d in rows.items() if hasattr(d, "digest")}
    values = {k: round(float(v), 6) for k, v in trainer.callback_metrics.items() if isinstance(v, Tensor)}
    parts = {"settings": hparams, "data": digests, "metrics": values}
    text = "\n\n".join(f"## {k}\n```json\n{json.dumps(v, indent=2, default=str)}\n```" for k, v in parts.items())
    head = "---\nlibrary_name: pl_prefopt\ntags: [preference-optimisation]\n---\n"
    return f"{head}# {type(module).__name__}\n\nTrained for {trainer.global_step} optimizer steps.\n\n{text}\n"
