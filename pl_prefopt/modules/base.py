"""`PreferenceModule`: everything a modality does not have to know about training on preferences."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from pl_prefopt.metrics import ExactMeans
from pl_prefopt.metrics.functional import ndcg
from pl_prefopt.modules.checkpoints import check_state, compare_hparams, keep_trainable, trainable_tensors
from pl_prefopt.objectives import Objective
from pl_prefopt.policies.base import FromCallable, PolicyBuilder
from pl_prefopt.references import NoReference, Reference
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.configurable import from_config, to_config
from pl_prefopt.utilities.seeding import derive_seed
from pl_prefopt.utilities.sharding import shard

Batch = dict[str, Any]


class PreferenceModule(pl.LightningModule):
    """A policy, a reference and an objective; a modality adds `score`.

    loss = (1/B) sum_b weight_b * objective(scores)_b, automatic optimisation. Hyper-parameters are plain values,
    checkpoints hold trainable tensors only, the reference never trains, and validation metrics are exact.

    Args:
        policy: builder of the network that is trained; any callable without arguments that returns a network will do
            in Python (`FromCallable` says so to a type checker), but is not remembered by checkpoints.
        objective: maps the scores of a batch to a loss per pair.
        reference: what is subtracted; ignored by objectives that need none.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, stepped after every optimizer step.
        seed: keys all random numbers of training that are not the data order.

    Raises:
        ValueError: the objective needs something that this modality cannot give.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"reference", "rejected", "list", "preference_prob", "margins"})
    metric_names: ClassVar[tuple[str, ...]] = (
        "loss", "accuracy", "margin", "chosen_logratio", "rejected_logratio", "ndcg",
    )  # fmt: skip

    policy: nn.Module
    split: str
    """Name of the data split of the batch at hand, as in `datamodule.datasets`."""

    def __init__(
        self,
        policy: PolicyBuilder,
        objective: Objective,
        reference: Reference,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.policy_builder = policy if callable(policy) else from_config(policy, PolicyBuilder)
        self.objective = from_config(objective, Objective)
        self.reference_config = from_config(reference, Reference)
        self.optimizer_factory = optimizer
        self.scheduler_factory = lr_scheduler
        self.seed = seed
        lacking = self.objective.needs - self.provides
        if lacking:
            raise ValueError(
                f"objective {type(self.objective).__name__} needs {', '.join(sorted(lacking))}, which "
                f"{type(self).__name__} cannot give; it gives {', '.join(sorted(self.provides))}"
            )
        self.strict_loading = False
        self.metrics = nn.ModuleDict()
        self.reference: nn.Module | None = None
        self.split = "train"
        self._unchecked: list[tuple[Tensor, Any]] = []
        plain = isinstance(self.policy_builder, PolicyBuilder) and not isinstance(self.policy_builder, FromCallable)
        self.save_hyperparameters(
            {
                "policy": to_config(self.policy_builder) if plain else None,
                "objective": to_config(self.objective),
                "reference": to_config(self.reference_config),
                "seed": seed,
            }
        )

    # ---- what a modality gives -------------------------------------------------------------------------------------

    @abstractmethod
    def score(self, batch: Batch) -> PairScores:
        """Scores of a batch, with gradient to the policy."""

    @abstractmethod
    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features that feed the policy's output layer: chosen (B, T, D), its mask (B, T), rejected, its mask."""

    def pair_logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-ratios of the chosen and the rejected sample, (B,) each, with gradient to the policy.

        Callbacks may pass any batch, so nothing that was cached for a split is used.
        """
        scores = self._score_anywhere(batch)
        return scores.chosen, scores.rejected

    def pair_losses(self, batch: Batch) -> Tensor:
        """The objective's loss per pair, (B,), with gradient to the policy; for callbacks, as `pair_logratios`."""
        return self.objective(self._score_anywhere(batch))

    def _score_anywhere(self, batch: Batch) -> PairScores:
        split, self.split = self.split, ""
        try:
            return self.score(batch)
        finally:
            self.split = split

    # ---- building --------------------------------------------------------------------------------------------------

    @property
    def needs_reference(self) -> bool:
        """Whether the objective subtracts a reference."""
        return "reference" in self.objective.needs and not isinstance(self.reference_config, NoReference)

    def configure_model(self) -> None:
        """Build policy and reference, once."""
        if hasattr(self, "policy"):
            return
        policy = self.policy_builder()
        if not any(p.requires_grad for p in policy.parameters()):
            raise ValueError("the policy has no trainable parameter; give it adapters or unfreeze it")
        self.policy = policy
        if self.needs_reference:
            self.reference = self.reference_config.build(policy)
        self._shard()

    def _shard(self) -> None:
        """Under ModelParallelStrategy: shard policy and reference, each on its own."""
        if self.device_mesh is None:
            return
        frozen = getattr(self.reference, "network", None)
        for network in (self.policy, frozen):
            if isinstance(network, nn.Module):
                shard(network, self.device_mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The injected optimizer over trainable parameters only; the schedule advances by optimizer steps."""
        optimizer = self.optimizer_factory([p for p in self.parameters() if p.requires_grad])  # type: ignore[arg-type]
        if self.scheduler_factory is None:
            return optimizer
        scheduler = self.scheduler_factory(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}  # type: ignore

    def train(self, mode: bool = True) -> PreferenceModule:
        """Switch the policy; everything frozen stays in eval mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def frozen_modules(self) -> list[nn.Module]:
        """Modules that never train and never leave eval mode."""
        return [] if self.reference is None else [self.reference]

    # ---- steps -----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Start from a policy in training mode: `from_pretrained` returns one in eval mode."""
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key the global generator (dropout, where it is on) by the step, so that a resumed run repeats it."""
        if getattr(self.policy_builder, "dropout", False):
            torch.manual_seed(derive_seed(self.seed, "step", self.global_step, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean over pairs of the weighted objective."""
        self.split = "train"
        scores = self.score(batch)
        losses = self.objective(scores)
        loss = (losses * batch["weight"]).mean() if "weight" in batch else losses.mean()
        self._unchecked.append((loss.detach(), batch.get("index")))
        size = losses.shape[0]
        rows = self.row_metrics(scores, losses.detach())
        means = {f"train/{k}": v.float().mean() for k, v in rows.items() if k != "loss"}
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log_dict(means, batch_size=size)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before a loss that is not finite reaches the weights.

        Raises:
            ValueError: naming the step, the value and the batch's row ids.
        """
        pending, self._unchecked = self._unchecked, []
        if not pending or bool(torch.isfinite(torch.stack([v for v, _ in pending])).all()):
            return
        for value, index in pending:
            if not torch.isfinite(value):
                rows = index.tolist() if isinstance(index, Tensor) else index
                raise ValueError(
                    f"train/loss is {value.item()} at optimizer step {self.global_step}, rows {rows} of the training "
                    "set. The weights were not updated and the last checkpoint is good: look at those rows, lower the "
                    "learning rate, or use bf16 instead of fp16."
                )

    def row_metrics(self, scores: PairScores, losses: Tensor) -> dict[str, Tensor]:
        """Quantities per pair, (B,) each, that become `{stage}/name`; in evaluation, lists with relevance get `ndcg`.

        Modalities add their own.
        """
        out = {"loss": losses, "chosen_logratio": scores.chosen.detach()}
        if scores.logratios.shape[1] == 1:
            return out
        rewards = self.objective.rewards(scores)
        gap = rewards[:, 0] - rewards[:, 1]
        out["rejected_logratio"] = scores.rejected.detach()
        out["accuracy"] = (gap > 0).float() + 0.5 * (gap == 0).float()
        out["margin"] = gap
        if "relevance" in scores.columns and not self.training:
            out["ndcg"] = ndcg(rewards, scores.columns["relevance"], mask=scores.mask)
        return out

    def _evaluate(self, stage: str, batch: Batch, dataloader_idx: int) -> None:
        name = self.eval_names(stage)[dataloader_idx]
        self.split = f"{stage}/{name}" if name else stage
        scores = self.score(batch)
        losses = self.objective(scores)
        metric = self.metrics[f"{stage}{dataloader_idx}"]
        assert isinstance(metric, ExactMeans)
        metric.update(self.row_metrics(scores, losses))

    def _start_evaluation(self, stage: str) -> None:
        for i in range(len(self.eval_names(stage))):
            key = f"{stage}{i}"
            if key not in self.metrics:
                self.metrics[key] = ExactMeans(self.metric_names).to(self.device)
            self.metrics[key].reset()  # type: ignore[operator]

    def _finish_evaluation(self, stage: str) -> None:
        for i, name in enumerate(self.eval_names(stage)):
            values = self.metrics[f"{stage}{i}"].compute()  # type: ignore[operator]
            prefix = stage if not name else f"{stage}/{name}"
            self.log_dict({f"{prefix}/{k}": v.to(self.device) for k, v in values.items()}, sync_dist=True)

    def eval_names(self, stage: str) -> list[str]:
        """One name per evaluation set; the only one is nameless, so its metrics are `val/accuracy` and so on."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if hasattr(datamodule, "names"):
            return [name.partition("/")[2] for name in datamodule.names(stage)]  # type: ignore[union-attr]
        loaders = self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        count = len(loaders) if isinstance(loaders, (list, tuple)) else 1
        return [""] if count == 1 else [str(i) for i in range(count)]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the exact sums."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the exact sums."""
        self._evaluate("test", batch, dataloader_idx)

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation("val")

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._start_evaluation("test")

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trainable tensors only."""
        keep_trainable(self, checkpoint)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = False, assign: bool = False) -> Any:
        """Load trainable tensors; frozen ones are rebuilt, so their absence is not reported."""
        keys = super().load_state_dict(state_dict, strict=strict, assign=assign)
        own = trainable_tensors(self)
        keys.missing_keys[:] = [k for k in keys.missing_keys if k in own]
        return keys

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, and, under a Trainer, of other hyper-parameters."""
        self.configure_model()
        if self._trainer is not None:
            compare_hparams(dict(self.hparams), checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        if "state_dict" in checkpoint:  # ModelParallelStrategy has filled the shards already
            check_state(self, checkpoint)
