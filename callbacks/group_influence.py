"""A mixture of data sources that follows their influence on held-out losses (TiKMiX, 2508.17677)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, TypedDict

import lightning.pytorch as pl
import numpy as np

from pl_prefopt.callbacks.support.influence_probe import (
    Loader,
    Probe,
    SourceData,
    differentiable_twice,
    find_sources,
)
from pl_prefopt.callbacks.support.protocols import Batch, HasLogratios, HasLosses, require
from pl_prefopt.callbacks.support.run_folder import run_folder
from pl_prefopt.mixtures.influence import METHODS, SURROGATES, direct_mixture, regression_mixture
from pl_prefopt.mixtures.sources import ScheduleState
from pl_prefopt.utilities.checks import choice, integer, not_negative, positive
from pl_prefopt.utilities.files import write_json

VARIANTS = ("direct", "regression")
LEAST_WEIGHT = 1e-3
"""Of a source in the prior of the regression variant, whose candidates are multiples of the prior."""


class Update(TypedDict):
    """New weights of the sources after an optimizer step, and the influence (T, K) that they follow."""

    step: int
    weights: dict[str, float]
    influence: list[list[float]]


class GroupInfluenceMixture(pl.Callback):
    """Every N optimizer steps, give more weight to the sources whose gradients lower the held-out losses.

    Influence S = grad f . H^-1 grad L_k for every validation set f and source k, then TiKMiX-D (a constrained mixture,
    SLSQP) or TiKMiX-M (measured candidates, a regression, refinement). Losses per pair come from the module's
    `pair_losses(batch)`, else they are DPO on `pair_logratios(batch)`. The training loader must draw from named
    sources: `train: {name: path, ...}` in our data modules, or `DataLoader(sampler=SourceSampler(...))`.

    The paper does not say how H is inverted; "diagonal" (Hutchinson) and "cg" differentiate twice, so they need about
    twice the memory of a training step on `batch_size` rows. TiKMiX-M measures a candidate by the held-out losses after
    a plain gradient step of size lr * N along the mixed gradient, which is our reading of its "true scores".

    Args:
        every_n_steps: N, >= 1.
        method: "identity", "diagonal" or "cg".
        variant: "direct" or "regression".
        rows: rows per source that the gradients are computed from, >= 1.
        batches: batches per validation set that the gradients are computed from, >= 1.
        batch_size: rows per pass over a source, >= 1.
        damping: lambda / mean |diag H|, >= 0.
        cg_steps: iterations of conjugate gradients, >= 1.
        balance: alpha of the mixture, weight of the spread between tasks, >= 0.
        total: beta of the mixture, weight of the total influence, >= 0.
        entropy: gamma of the mixture, >= 0; smaller values allow more uneven weights.
        beta: of DPO, > 0, for modules without `pair_losses`.
        candidates: measured mixtures of the regression variant, >= 8.
        surrogate: "lightgbm" or "sklearn", of the regression variant.
        seed: key of all draws.

    Raises:
        ValueError: settings out of range; at the start of training, a loader without sources or no validation set.
        TypeError: in `setup`, a module without `policy`, or without `pair_losses` and `pair_logratios`.
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
            integer(name, count)
        for name, value in {"damping": damping, "balance": balance, "total": total, "entropy": entropy}.items():
            not_negative(name, value)
        positive("beta", beta)
        choice("method", method, METHODS)
        choice("variant", variant, VARIANTS)
        choice("surrogate", surrogate, SURROGATES)
        integer("candidates", candidates, least=8)
        self.every_n_steps, self.method, self.variant = every_n_steps, method, variant
        self.rows, self.batches, self.batch_size = rows, batches, batch_size
        self.damping, self.cg_steps = damping, cg_steps
        self.balance, self.total, self.entropy, self.beta = balance, total, entropy, beta
        self.candidates, self.surrogate, self.seed = candidates, surrogate, seed
        self.history: list[Update] = []
        self._step = 0
        self._schedule_state: ScheduleState | None = None
        self._data: SourceData | None = None

    @property
    def state_key(self) -> str:
        """Two instances with different settings have different keys."""
        return self._generate_state_key(every_n_steps=self.every_n_steps, method=self.method, variant=self.variant)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Validate the module, and that the surrogate is installed."""
        pl_module.configure_model()
        require(pl_module, self, HasLosses if hasattr(pl_module, "pair_losses") else HasLogratios)
        if self.variant == "regression" and find_spec(self.surrogate) is None:
            raise ValueError(f"surrogate {self.surrogate!r} is not installed; pip install 'pl_prefopt[mixture]'")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the sources, and continue with the weights of the checkpoint."""
        self._data = find_sources(trainer.train_dataloader)
        if not held_out_loaders(trainer):
            raise ValueError(
                "validation set must be given, got none. GroupInfluenceMixture needs a validation set: its losses are "
                "what the mixture lowers"
            )
        if self._schedule_state is not None:
            self._data.schedule.load_state_dict(self._schedule_state)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand the weights on when Lightning has reloaded the training loader."""
        data = find_sources(trainer.train_dataloader)
        if self._data is not None and data.schedule is not self._data.schedule:
            data.schedule.load_state_dict(self._data.schedule.state_dict())
            self._data = data

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Set new weights after N further optimizer steps."""
        step = trainer.global_step
        if step == self._step or step % self.every_n_steps or self._data is None:
            return
        self._step = step
        probe = Probe(
            trainer,
            pl_module,
            self._data,
            rows=self.rows,
            batches=self.batches,
            batch_size=self.batch_size,
            beta=self.beta,
            seed=self.seed,
        )
        with differentiable_twice(pl_module):
            influence = probe.influence(
                held_out_loaders(trainer), self.method, damping=self.damping, steps=self.cg_steps
            )
            weights = self._mixture(probe, influence, trainer.optimizers[0].param_groups[0]["lr"])
        # Solvers may round differently on different machines, and all ranks must draw from the same mixture.
        weights = trainer.strategy.broadcast(weights.tolist())
        named = dict(zip(self._data.schedule.names, weights, strict=True))
        self._data.schedule.set_weights(named)
        self._report(trainer, named, influence)

    def _mixture(self, probe: Probe, influence: np.ndarray, lr: float) -> np.ndarray:
        """(K,) weights for an influence (T, K)."""
        prior = probe.data.schedule.weights
        weights = direct_mixture(influence, prior, alpha=self.balance, beta=self.total, gamma=self.entropy)
        if self.variant == "direct":
            return weights
        rate = lr * self.every_n_steps
        return regression_mixture(
            lambda candidate: probe.measure(candidate, rate),
            np.maximum(prior, LEAST_WEIGHT),
            weights,
            candidates=self.candidates,
            surrogate=self.surrogate,
            seed=self.seed,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Release the loader; the weights stay in the state."""
        if self._data is not None:
            self._schedule_state = self._data.schedule.state_dict()
            self._data = None

    def _report(self, trainer: pl.Trainer, weights: dict[str, float], influence: np.ndarray) -> None:
        """Log the weights, and write all updates so far to `mixture.json`."""
        self.history.append({"step": trainer.global_step, "weights": weights, "influence": influence.tolist()})
        for logger in trainer.loggers:
            logger.log_metrics({f"mixture/{k}": v for k, v in weights.items()}, step=trainer.global_step)
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            write_json(folder / "mixture.json", self.history, indent=1)

    def state_dict(self) -> dict[str, Any]:
        """Return all weights so far."""
        schedule = self._schedule_state if self._data is None else self._data.schedule.state_dict()
        return {"step": self._step, "history": self.history, "schedule": schedule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the same weights."""
        self._step, self.history = state_dict["step"], state_dict["history"]
        self._schedule_state = state_dict["schedule"]


def held_out_loaders(trainer: pl.Trainer) -> list[Loader]:
    """Validation loaders, none without a validation set."""
    loaders = trainer.val_dataloaders
    if loaders is None:
        return []
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
