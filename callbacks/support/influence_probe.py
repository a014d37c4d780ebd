"""Gradients, Hessian products and losses of a module's pairs at one moment of training.

Legend: P trainable parameters of the policy, K sources, T held-out sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pl_prefopt.callbacks.support.evaluation import evaluating
from pl_prefopt.callbacks.support.protocols import Batch, HasLogratios, HasLosses, RandomAccessRows
from pl_prefopt.losses import dpo_loss
from pl_prefopt.mixtures.influence import flat_gradient, group_influence, inverse
from pl_prefopt.mixtures.sources import SourceSchedule

Loader = Iterable[Batch]


@dataclass(frozen=True)
class SourceData:
    """The parts of a training loader that draws from sources."""

    schedule: SourceSchedule
    rows: RandomAccessRows
    collate: Callable[[list[Any]], Batch]


def find_sources(loader: object) -> SourceData:
    """Schedule, rows and collate function of a `PlannedLoader` or of a `DataLoader` with a `SourceSampler`.

    Raises:
        ValueError: it does not draw from sources.
    """
    for plan, rows, collate in (("plan", "rows", "collate"), ("sampler", "dataset", "collate_fn")):
        schedule = getattr(getattr(loader, plan, None), "schedule", None)
        if isinstance(schedule, SourceSchedule):
            return SourceData(schedule, getattr(loader, rows), getattr(loader, collate))
    raise ValueError(
        f"training loader must draw from named sources, got a {type(loader).__name__} that does not draw from named "
        "sources. Give the datamodule train: {name: path, ...}, or a DataLoader sampler=SourceSampler({name: row ids})"
    )


@contextmanager
def differentiable_twice(module: nn.Module) -> Iterator[None]:
    """Eval mode with gradients, and attention without fused kernels, whose backward has no derivative of its own."""
    with evaluating(module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


class Probe:
    """Measure sources against held-out batches; all numbers are means over the rows of all ranks.

    Args:
        trainer: gives rank, precision and reduction.
        pl_module: has `policy`, and `pair_losses` or `pair_logratios`.
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
        pl_module: pl.LightningModule,
        data: SourceData,
        *,
        rows: int = 64,
        batches: int = 4,
        batch_size: int = 16,
        beta: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.trainer, self.pl_module, self.data = trainer, pl_module, data
        self.rows, self.batches, self.batch_size = rows, batches, batch_size
        self.beta, self.seed = beta, seed
        policy = cast(HasLogratios, pl_module).policy
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.held_out: list[list[Batch]] = []
        self.gradients = torch.zeros(0)
        self.losses = torch.zeros(0)

    def influence(
        self, loaders: list[Loader], method: str = "diagonal", *, damping: float = 0.1, steps: int = 10
    ) -> np.ndarray:
        """Return (T, K) float64, one row per held-out loader; options as in `pl_prefopt.mixtures.influence.inverse`."""
        self.held_out = [
            [self._to_device(batch) for _, batch in zip(range(self.batches), loader, strict=False)]
            for loader in loaders
        ]
        sources = [list(self._source_batches(k)) for k in range(len(self.data.schedule.names))]
        self.gradients = torch.stack([self._mean_gradient(batches) for batches in sources])
        held_out_gradients = torch.stack([self._mean_gradient(batches) for batches in self.held_out])
        self.losses = self._held_out_losses()
        weights = self.data.schedule.weights

        def hessian_product(v: Tensor) -> Tensor:
            """Product with the Hessian of sum_k w_k L_k, the loss that training minimises now."""
            products = [self._mean_product(batches, v) for batches in sources]
            return sum((w * product for w, product in zip(weights, products, strict=True)), torch.zeros_like(v))

        solve = inverse(method, hessian_product, held_out_gradients[0], damping=damping, steps=steps)
        return group_influence(held_out_gradients, self.gradients, solve).double().cpu().numpy()

    @torch.no_grad()
    def measure(self, weights: np.ndarray, rate: float) -> float:
        """Decrease of the held-out losses, summed over tasks, after a step of size `rate` along the mixed gradient.

        The parameters are restored.
        """
        step = rate * (torch.as_tensor(weights).to(self.gradients) @ self.gradients)
        before = [p.clone() for p in self.parameters]
        for p, part in zip(self.parameters, step.split([p.numel() for p in self.parameters]), strict=True):
            p -= part.view_as(p)
        losses = self._held_out_losses()
        for p, value in zip(self.parameters, before, strict=True):
            p.copy_(value)  # p + part would not restore the last bits
        return float((self.losses - losses).sum())

    def _source_batches(self, source: int) -> Iterator[Batch]:
        """This rank's share of a random choice of rows of a source, in batches."""
        rng = np.random.default_rng([self.seed, self.trainer.global_step, source])
        chosen = rng.permutation(self.data.schedule.rows_of[source])[: self.rows]
        share = chosen[self.trainer.global_rank :: self.trainer.world_size]
        for start in range(0, len(share), self.batch_size):
            rows = [self.data.rows[int(i)] for i in share[start : start + self.batch_size]]
            yield self._to_device(self.data.collate(rows))

    def _to_device(self, batch: Batch) -> Batch:
        return move_data_to_device(batch, self.pl_module.device)

    def _pair_losses(self, batch: Batch) -> Tensor:
        """Loss of each pair, (B,) float32."""
        with self.trainer.precision_plugin.forward_context():
            if hasattr(self.pl_module, "pair_losses"):
                return cast(HasLosses, self.pl_module).pair_losses(batch).float()
            chosen, rejected = cast(HasLogratios, self.pl_module).pair_logratios(batch)
            return dpo_loss(chosen.float(), rejected.float(), beta=self.beta)

    def _mean(self, batches: list[Batch], measure: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Mean over the rows of all ranks of what a linear `measure` makes of the sum of a batch's losses.

        Sums and counts are reduced in one tensor, so that ranks with unequal numbers of rows give the exact mean.
        """
        total, count = torch.zeros_like(like), torch.zeros((), device=like.device)
        for batch in batches:
            losses = self._pair_losses(batch)
            total += measure(losses.sum())
            count += len(losses)
        both = self.trainer.strategy.reduce(torch.cat([total.reshape(-1), count[None]]), reduce_op="sum")
        return (both[:-1] / both[-1]).view_as(like)

    def _mean_gradient(self, batches: list[Batch]) -> Tensor:
        """(P,) gradient of the mean loss."""
        return self._mean(batches, lambda loss: flat_gradient(loss, self.parameters), self._zeros())

    def _mean_product(self, batches: list[Batch], v: Tensor) -> Tensor:
        """(P,) product of the Hessian of the mean loss with v: the gradient of (gradient . v)."""

        def product(loss: Tensor) -> Tensor:
            slope = flat_gradient(loss, self.parameters, create_graph=True) @ v
            # a loss that is linear in the parameters has a constant gradient, hence no graph and a Hessian of zero
            return flat_gradient(slope, self.parameters) if slope.requires_grad else torch.zeros_like(v)

        return self._mean(batches, product, self._zeros())

    def _zeros(self) -> Tensor:
        return torch.zeros(sum(p.numel() for p in self.parameters), device=self.pl_module.device)

    @torch.no_grad()
    def _held_out_losses(self) -> Tensor:
        """(T,) mean loss of each held-out set."""
        scalar = torch.zeros((), device=self.pl_module.device)
        return torch.stack([self._mean(batches, lambda loss: loss, scalar) for batches in self.held_out])
