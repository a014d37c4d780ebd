"""Notice when the likelihood of the chosen samples falls while the margin grows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device, rank_zero_warn
from torch import Tensor

from pl_prefopt.callbacks.support.evaluation import evaluating
from pl_prefopt.callbacks.support.gather import gather_rows
from pl_prefopt.callbacks.support.protocols import HasLogratios, require
from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.utilities.checks import integer, not_negative


class LikelihoodDisplacementMonitor(pl.Callback):
    """Watch log pi(y_w|x) of fixed pairs against its value at the start (2410.08847, definition 1).

    Displacement: the mean margin has grown AND the mean log-ratio of the chosen samples lies below its start. While the
    reference does not move, a change of the log-ratio is the change of the log-probability. Logs
    `displacement/chosen_change`, `displacement/margin_change` and `displacement/share` (pairs whose chosen sample
    became less likely) after every validation, warns with the row ids (`batch["index"]`, else positions in the set) of
    the worst pairs, and writes a plot at the end.

    Args:
        batches: number of validation batches that are watched on every rank, >= 1.
        tolerance: nats that the mean may fall without a warning, >= 0.
        stop: end training at the first warning.

    Raises:
        ValueError: settings out of range; at the start of training, no validation set; later, no row that
            was watched at the start.
        TypeError: in `setup`, a module without `policy` or `pair_logratios`.
    """

    def __init__(self, batches: int = 4, tolerance: float = 0.0, stop: bool = False) -> None:
        integer("batches", batches)
        not_negative("tolerance", tolerance)
        self.batches, self.tolerance, self.stop = batches, tolerance, stop
        self.history: list[dict[str, float]] = []
        self._start: Tensor | None = None

    @property
    def state_key(self) -> str:
        """Two instances with different settings have different keys."""
        return self._generate_state_key(batches=self.batches, tolerance=self.tolerance)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate the module."""
        pl_module.configure_model()
        require(pl_module, self, HasLogratios)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score the watched pairs before the first step."""
        if self._start is None:
            self._start = self._score(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the start."""
        if trainer.sanity_checking or self._start is None:
            return
        now = self._score(trainer, pl_module)
        ids, now_at, start_at = np.intersect1d(now[:, 0], self._start[:, 0], assume_unique=True, return_indices=True)
        if not len(ids):
            raise ValueError(
                f"validation rows must come in a fixed order, but none of the {len(now)} watched rows was watched at "
                "the start. LikelihoodDisplacementMonitor compares the first batches: do not shuffle validation"
            )
        change = (now[now_at] - self._start[start_at])[:, 1:]
        chosen, margin = change[:, 0], change[:, 0] - change[:, 1]
        means = {
            "chosen_change": float(chosen.mean()),
            "margin_change": float(margin.mean()),
            "share": float((chosen < 0).double().mean()),
        }
        self.history.append({"step": float(trainer.global_step), **means})
        for logger in trainer.loggers:
            logger.log_metrics({f"displacement/{k}": v for k, v in means.items()}, step=trainer.global_step)
        if means["margin_change"] > 0 and means["chosen_change"] < -self.tolerance:
            worst = [int(i) for i in ids[chosen.argsort()[:3]]]
            rank_zero_warn(
                f"likelihood displacement in epoch {trainer.current_epoch}: the margin grew by "
                f"{means['margin_change']:.3g} nats while the chosen samples fell by {-means['chosen_change']:.3g}; "
                f"{means['share']:.0%} of the watched pairs, worst rows {worst}. Mix in SFT, use DPOP, or CHESFilter."
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
        """Return the start values and the history."""
        return {"start": self._start, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the same start."""
        self._start, self.history = state_dict["start"], state_dict["history"]

    @torch.no_grad()
    def _score(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Tensor:
        """(n, 3) float64, ascending by row id: id and both log-ratios of the watched pairs of all ranks."""
        loaders = trainer.val_dataloaders
        loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
        if loader is None:
            raise ValueError(
                "validation set must be given, got none. LikelihoodDisplacementMonitor watches its first batches"
            )
        module, device = cast(HasLogratios, pl_module), pl_module.device
        scored: list[Tensor] = []
        seen = 0
        with evaluating(pl_module):
            for batch in islice(loader, self.batches):
                with trainer.precision_plugin.forward_context():
                    pair = module.pair_logratios(move_data_to_device(batch, device))
                ids = batch.get("index") if isinstance(batch, Mapping) else None
                if ids is None:  # rank r of a distributed sampler has the rows r, r + ranks, r + 2 ranks, ...
                    ids = trainer.global_rank + trainer.world_size * torch.arange(seen, seen + len(pair[0]))
                seen += len(pair[0])
                scored.append(torch.stack([torch.as_tensor(x).double().cpu() for x in (ids, *pair)], 1))
        rows = gather_rows(trainer, torch.cat(scored), device)
        # A distributed sampler repeats rows so that all ranks have equally many; each row counts once.
        _, first = np.unique(rows[:, 0].numpy(), return_index=True)
        return rows[first]
