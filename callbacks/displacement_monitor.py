"""Notice when the likelihood of the chosen samples falls while the margin grows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_warn
from torch import Tensor

from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.callbacks.support.shared import evaluating, gather_rows, run_folder


class LikelihoodDisplacementMonitor(pl.Callback):
    """Watch log pi(y_w|x) of fixed pairs against its value at the start (2410.08847, definition 1).

    Displacement: the mean margin has grown AND the mean log-ratio of the chosen samples lies below its start. While the
    reference stays where it is, a change of the log-ratio is the change of the log-probability. Logs
    `displacement/chosen_change`, `displacement/margin_change` and `displacement/share` (pairs whose chosen sample
    became less likely) after every validation, warns with the row ids (`batch["index"]`, else places in the set) of the
    worst pairs, and writes a plot at the end.

    Args:
        batches: number of validation batches that are watched on every rank, >= 1.
        tolerance: nats below the start that are not yet an event, >= 0.
        stop: end training at the first event.

    Raises:
        ValueError: settings out of range; at the start of training, no validation set; later, no row that
            was watched at the start.
        TypeError: the module lacks `policy` or `pair_logratios`.
    """

    def __init__(self, batches: int = 4, tolerance: float = 0.0, stop: bool = False) -> None:
        if batches < 1:
            raise ValueError(f"batches must be >= 1, got {batches}")
        if tolerance < 0:
            raise ValueError(f"tolerance must be >= 0, got {tolerance}")
        self.batches, self.tolerance, self.stop = batches, tolerance, stop
        self.history: list[dict[str, float]] = []
        self._start: Tensor | None = None
        self._now: list[Tensor] = []

    @property
    def state_key(self) -> str:
        """Two instances with other settings have other keys."""
        return self._generate_state_key(batches=self.batches, tolerance=self.tolerance)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the module."""
        pl_module.configure_model()
        require(pl_module, self, "policy", "pair_logratios")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score the watched pairs before the first step."""
        if self._start is None:
            self._start = self._score(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the start."""
        if trainer.sanity_checking or self._start is None:
            return
        now = self._score(trainer, pl_module)
        ids, here, then = np.intersect1d(now[:, 0], self._start[:, 0], assume_unique=True, return_indices=True)
        if not len(ids):
            raise ValueError(
                f"LikelihoodDisplacementMonitor: none of the {len(now)} watched rows was watched at the start; "
                "validate in a fixed order"
            )
        change = (now[here] - self._start[then])[:, 1:]
        chosen, margin = change[:, 0], change[:, 0] - change[:, 1]
        values = {
            "chosen_change": float(chosen.mean()),
            "margin_change": float(margin.mean()),
            "share": float((chosen < 0).double().mean()),
        }
        self.history.append({"step": float(trainer.global_step), **values})
        for logger in trainer.loggers:
            logger.log_metrics({f"displacement/{k}": v for k, v in values.items()}, step=trainer.global_step)
        if values["margin_change"] > 0 and values["chosen_change"] < -self.tolerance:
            self._event(trainer, [int(i) for i in ids[chosen.argsort()[:3]]], values)

    def _event(self, trainer: pl.Trainer, worst: list[int], values: dict[str, float]) -> None:
        rank_zero_warn(
            f"likelihood displacement in epoch {trainer.current_epoch}: the margin grew by "
            f"{values['margin_change']:.3g} nats while the chosen samples fell by {-values['chosen_change']:.3g}; "
            f"{values['share']:.0%} of the watched pairs, worst rows {worst}. Mix in SFT, use DPOP, or CHESFilter."
        )
        if self.stop:
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Plot both changes over the steps."""
        folder = run_folder(trainer)
        if not self.history or not trainer.is_global_zero:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps = [h["step"] for h in self.history]
        axes.axhline(0, color="#9aa5b1", linewidth=1)
        axes.plot(steps, [h["chosen_change"] for h in self.history], marker="o", label="chosen log-probability")
        axes.plot(steps, [h["margin_change"] for h in self.history], marker="o", label="margin")
        axes.set(xlabel="optimizer step", ylabel="change since the start, nats")
        axes.legend(frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "displacement.png", dpi=120)

    def state_dict(self) -> dict[str, Any]:
        """Start values and history."""
        return {"start": self._start, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same start."""
        self._start, self.history = state_dict["start"], state_dict["history"]

    @torch.no_grad()
    def _score(self, trainer: pl.Trainer, module: Any) -> Tensor:
        """(n, 3) float64, by row id: id and both log-ratios of the watched pairs of all ranks."""
        loaders = trainer.val_dataloaders
        loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
        if loader is None:
            raise ValueError("LikelihoodDisplacementMonitor watches validation pairs, but there is no validation set")
        out: list[Tensor] = []
        seen = 0
        with evaluating(module):
            for batch in islice(loader, self.batches):
                with trainer.precision_plugin.forward_context():
                    pair = module.pair_logratios(move_data_to_device(batch, module.device))
                ids = batch.get("index") if isinstance(batch, Mapping) else None
                if ids is None:
                    ids = trainer.global_rank + trainer.world_size * torch.arange(seen, seen + len(pair[0]))
                seen += len(pair[0])
                out.append(torch.stack([torch.as_tensor(x).double().cpu() for x in (ids, *pair)], 1))
        rows = gather_rows(trainer, torch.cat(out), module.device)
        _, first = np.unique(rows[:, 0].numpy(), return_index=True)
        return rows[first]
