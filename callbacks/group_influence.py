"""A mixture of data sources that follows their influence on held-out losses (TiKMiX, 2508.17677)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
import numpy as np

from pl_prefopt.callbacks.support.influence_probe import Probe, SourceData, find_sources, quiet
from pl_prefopt.callbacks.support.protocols import require
from pl_prefopt.callbacks.support.shared import run_folder
from pl_prefopt.mixtures.influence import METHODS, SURROGATES, direct_mixture, regression_mixture


class GroupInfluenceMixture(pl.Callback):
    """Every N optimizer steps, give more weight to the sources whose gradients lower the held-out losses.

    Influence S = grad f . H^-1 grad L_k for every validation set f and source k, then TiKMiX-D (a constrained mixture,
    SLSQP) or TiKMiX-M (measured candidates, a regression, refinement). Losses per pair come from the module's
    `pair_losses(batch)`, else they are DPO on `pair_logratios(batch)`. The training loader must draw from named
    sources: `train: {name: path, ...}` in our data modules, or `DataLoader(sampler=SourceSampler(...))`.

    The paper does not say how H is inverted; "diagonal" (Hutchinson) and "cg" differentiate twice, so memory is about
    twice that of a training step on `batch_size` rows. TiKMiX-M measures a candidate by the held-out losses after a
    plain gradient step of size lr * N along the mixed gradient, which is our reading of its "true scores".

    Args:
        every_n_steps: N, >= 1.
        method: "identity", "diagonal" or "cg".
        variant: "direct" or "regression".
        rows: rows per source that are looked at, >= 1.
        batches: batches per validation set that are looked at, >= 1.
        batch_size: rows per pass over a source.
        damping: lambda / mean |diag H|, >= 0.
        cg_steps: iterations of conjugate gradients.
        balance: alpha of the mixture, weight of the spread between tasks.
        total: beta of the mixture, weight of the total influence.
        entropy: gamma of the mixture; smaller values allow more uneven weights.
        beta: of DPO, for modules without `pair_losses`.
        candidates: measured mixtures of the regression variant, >= 8.
        surrogate: "lightgbm" or "sklearn", of the regression variant.
        seed: key of all draws.

    Raises:
        ValueError: settings out of range; at the start of training, a loader without sources or no validation set.
        TypeError: the module lacks `policy`, or both `pair_losses` and `pair_logratios`.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        method: str = "diagonal",
        variant: str = "direct",
        rows: int = 64,
        batches: int = 4,
        batch_size: int = 16,
        damping: float = 0.1,
        cg_steps: int = 10,
        balance: float = 1.0,
        total: float = 1.0,
        entropy: float = 1.0,
        beta: float = 0.1,
        candidates: int = 32,
        surrogate: str = "lightgbm",
        seed: int = 0,
    ) -> None:
        counts = {"every_n_steps": every_n_steps, "rows": rows, "batches": batches, "batch_size": batch_size}
        for name, count in (counts | {"cg_steps": cg_steps}).items():
            if count < 1:
                raise ValueError(f"{name} must be >= 1, got {count}")
        for name, value in {"damping": damping, "balance": balance, "total": total, "entropy": entropy}.items():
            if not value >= 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        known = {"method": METHODS, "variant": ("direct", "regression"), "surrogate": SURROGATES}
        for name, value in {"method": method, "variant": variant, "surrogate": surrogate}.items():
            if value not in known[name]:
                raise ValueError(f"{name} must be one of {', '.join(known[name])}, got {value!r}")
        if candidates < 8:
            raise ValueError(f"candidates must be >= 8, got {candidates}")
        self.every_n_steps, self.method, self.variant = every_n_steps, method, variant
        self.rows, self.batches, self.batch_size = rows, batches, batch_size
        self.damping, self.cg_steps = damping, cg_steps
        self.balance, self.total, self.entropy, self.beta = balance, total, entropy, beta
        self.candidates, self.surrogate, self.seed = candidates, surrogate, seed
        self.history: list[dict[str, Any]] = []
        self._step = 0
        self._schedule_state: dict[str, Any] | None = None
        self._data: SourceData | None = None

    @property
    def state_key(self) -> str:
        """Two instances with other settings have other keys."""
        return self._generate_state_key(every_n_steps=self.every_n_steps, method=self.method, variant=self.variant)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the module."""
        pl_module.configure_model()
        require(pl_module, self, "policy", *([] if hasattr(pl_module, "pair_losses") else ["pair_logratios"]))
        if self.variant == "regression" and find_spec(self.surrogate) is None:
            raise ValueError(f"surrogate {self.surrogate!r} is not installed; pip install 'pl_prefopt[mixture]'")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the sources and go back to their weights."""
        self._data = find_sources(trainer.train_dataloader)
        if not self._held_out(trainer):
            raise ValueError("GroupInfluenceMixture needs a validation set: its losses are what the mixture lowers")
        if self._schedule_state is not None:
            self._data.schedule.load_state_dict(self._schedule_state)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give a loader that was made anew the weights of the last one."""
        data = find_sources(trainer.train_dataloader)
        if self._data is not None and data.schedule is not self._data.schedule:
            data.schedule.load_state_dict(self._data.schedule.state_dict())
            self._data = data

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set new weights when N new optimizer steps have been made."""
        step = trainer.global_step
        if step == self._step or step % self.every_n_steps or self._data is None:
            return
        self._step = step
        schedule = self._data.schedule
        looked_at = {"rows": self.rows, "batches": self.batches, "batch_size": self.batch_size}
        probe = Probe(trainer, pl_module, self._data, **looked_at, beta=self.beta, seed=self.seed)
        with quiet(pl_module):
            influence = probe.influence(self._held_out(trainer), self.method, damping=self.damping, steps=self.cg_steps)
            prior = schedule.weights
            weights = direct_mixture(influence, prior, alpha=self.balance, beta=self.total, gamma=self.entropy)
            if self.variant == "regression":
                rate = trainer.optimizers[0].param_groups[0]["lr"] * self.every_n_steps
                weights = regression_mixture(
                    lambda w: probe.measure(w, rate),
                    np.maximum(prior, 1e-3),
                    weights,
                    candidates=self.candidates,
                    surrogate=self.surrogate,
                    seed=self.seed,
                )
        weights = np.asarray(trainer.strategy.broadcast(weights.tolist()))
        schedule.set_weights(dict(zip(schedule.names, weights.tolist(), strict=True)))
        self._report(trainer, dict(zip(schedule.names, weights.tolist(), strict=True)), influence)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the loader; the weights stay in the state."""
        if self._data is not None:
            self._schedule_state = self._data.schedule.state_dict()
            self._data = None

    def _held_out(self, trainer: pl.Trainer) -> list[Any]:
        loaders = trainer.val_dataloaders
        return [] if loaders is None else list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]

    def _report(self, trainer: pl.Trainer, weights: dict[str, float], influence: np.ndarray) -> None:
        entry = {"step": trainer.global_step, "weights": weights, "influence": influence.tolist()}
        self.history.append(entry)
        for logger in trainer.loggers:
            logger.log_metrics({f"mixture/{k}": v for k, v in weights.items()}, step=trainer.global_step)
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "mixture.json").write_text(json.dumps(self.history, indent=1), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """All weights so far."""
        schedule = self._schedule_state if self._data is None else self._data.schedule.state_dict()
        return {"step": self._step, "history": self.history, "schedule": schedule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same weights."""
        self._step, self.history = state_dict["step"], state_dict["history"]
        self._schedule_state = state_dict["schedule"]
