"""Gradients, Hessian products and losses of a module's pairs at one moment of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pl_prefopt.callbacks.support.shared import evaluating
from pl_prefopt.losses import dpo_loss
from pl_prefopt.mixtures.influence import flat_gradient, group_influence, inverse
from pl_prefopt.mixtures.sources import SourceSchedule


@dataclass(frozen=True)
class SourceData:
    """The parts of a training loader that draws from sources."""

    schedule: SourceSchedule
    dataset: Any
    collate: Callable[[list[Any]], Any]


def find_sources(loader: Any) -> SourceData:
    """Schedule, rows and collate function of a loader, ours or a plain one.

    Raises:
        ValueError: it does not draw from sources.
    """
    for plan, rows, collate in (("plan", "rows", "collate"), ("sampler", "dataset", "collate_fn")):
        schedule = getattr(getattr(loader, plan, None), "schedule", None)
        if isinstance(schedule, SourceSchedule):
            return SourceData(schedule, getattr(loader, rows), getattr(loader, collate))
    raise ValueError(
        f"GroupInfluenceMixture: the training loader ({type(loader).__name__}) does not draw from named sources; give "
        "the data module train: {name: path, ...}, or a DataLoader sampler=SourceSampler({name: row ids, ...})"
    )


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode, gradients on, attention that can be differentiated twice."""
    with evaluating(module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


class Probe:
    """Measure sources against held-out batches; all numbers are means over the rows of all ranks.

    Args:
        trainer: gives rank, precision and reduction.
        module: has `policy`, and `pair_losses` or `pair_logratios`.
        data: the sources.
        rows: rows per source.
        batches: batches per held-out set.
        batch_size: rows per pass over a source.
        beta: of DPO, for modules without `pair_losses`.
        seed: key of the choice of rows.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: Any,
        data: SourceData,
        *,
        rows: int = 64,
        batches: int = 4,
        batch_size: int = 16,
        beta: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.trainer, self.module, self.data = trainer, module, data
        self.rows, self.batches, self.batch_size = rows, batches, batch_size
        self.beta, self.seed = beta, seed
        self.parameters = [p for p in module.policy.parameters() if p.requires_grad]
        self.held_out: list[list[Any]] = []
        self.gradients = torch.zeros(0)
        self.losses = torch.zeros(0)

    def influence(
        self, loaders: list[Any], method: str = "diagonal", *, damping: float = 0.1, steps: int = 10
    ) -> np.ndarray:
        """Return (T, K) float64, one row per held-out loader; options as in `pl_prefopt.mixtures.influence.inverse`."""
        self.held_out = [self._first(loader) for loader in loaders]
        sources = [list(self._rows_of(k)) for k in range(len(self.data.schedule.names))]
        self.gradients = torch.stack([self._mean_gradient(b) for b in sources])
        wanted = torch.stack([self._mean_gradient(b) for b in self.held_out])
        self.losses = self._held_out_losses()

        def product(v: Tensor) -> Tensor:
            parts = [self._mean_product(b, v) for b in sources]
            return sum((w * p for w, p in zip(self.data.schedule.weights, parts, strict=True)), torch.zeros_like(v))

        solve = inverse(method, product, wanted[0], damping=damping, steps=steps)
        return group_influence(wanted, self.gradients, solve).double().cpu().numpy()

    @torch.no_grad()
    def measure(self, weights: np.ndarray, rate: float) -> float:
        """Fall of the held-out losses, summed over tasks, after a step along the mixed gradient; weights unchanged."""
        step = rate * (torch.as_tensor(weights).to(self.gradients) @ self.gradients)
        kept = [p.clone() for p in self.parameters]
        for p, s in zip(self.parameters, step.split([p.numel() for p in self.parameters]), strict=True):
            p -= s.view_as(p)
        after = self._held_out_losses()
        for p, value in zip(self.parameters, kept, strict=True):
            p.copy_(value)
        return float((self.losses - after).sum())

    def _first(self, loader: Iterable[Any]) -> list[Any]:
        return [self._here(b) for _, b in zip(range(self.batches), loader, strict=False)]

    def _rows_of(self, source: int) -> Iterator[Any]:
        """This rank's share of batches of rows of a source."""
        rows = self.data.schedule.rows_of[source]
        rng = np.random.default_rng([self.seed, self.trainer.global_step, source])
        picked = rng.permutation(rows)[: self.rows][self.trainer.global_rank :: self.trainer.world_size]
        for at in range(0, len(picked), self.batch_size):
            yield self._here(self.data.collate([self.data.dataset[int(i)] for i in picked[at : at + self.batch_size]]))

    def _here(self, batch: Any) -> Any:
        return move_data_to_device(batch, self.module.device)

    def _loss(self, batch: Any) -> Tensor:
        with self.trainer.precision_plugin.forward_context():
            if hasattr(self.module, "pair_losses"):
                return self.module.pair_losses(batch).float()
            return dpo_loss(*(x.float() for x in self.module.pair_logratios(batch)), beta=self.beta)

    def _mean(self, batches: list[Any], measure: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Mean over rows of all ranks of what `measure` makes of the sum of a batch's losses."""
        total, count = torch.zeros_like(like), torch.zeros((), device=like.device)
        for batch in batches:
            losses = self._loss(batch)
            total += measure(losses.sum())
            count += len(losses)
        both = self.trainer.strategy.reduce(torch.cat([total.reshape(-1), count[None]]), reduce_op="sum")
        return (both[:-1] / both[-1]).view_as(like)

    def _zeros(self) -> Tensor:
        return torch.zeros(sum(p.numel() for p in self.parameters), device=self.module.device)

    def _mean_gradient(self, batches: list[Any]) -> Tensor:
        return self._mean(batches, lambda loss: flat_gradient(loss, self.parameters), self._zeros())

    def _mean_product(self, batches: list[Any], v: Tensor) -> Tensor:
        def product(loss: Tensor) -> Tensor:
            slope = flat_gradient(loss, self.parameters, create_graph=True) @ v
            return flat_gradient(slope, self.parameters) if slope.requires_grad else torch.zeros_like(v)

        return self._mean(batches, product, self._zeros())

    @torch.no_grad()
    def _held_out_losses(self) -> Tensor:
        one = torch.zeros((), device=self.module.device)
        return torch.stack([self._mean(b, lambda loss: loss, one) for b in self.held_out])
