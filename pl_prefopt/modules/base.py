"""`PreferenceModule`: everything a modality does not have to know about training on preferences."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from pl_prefopt.metrics.functional import ndcg
from pl_prefopt.modules.checkpoints import TrainableCheckpoints
from pl_prefopt.modules.evaluation import Batch, ExactEvaluation
from pl_prefopt.objectives import Objective
from pl_prefopt.policies.base import FromCallable, PolicyBuilder
from pl_prefopt.references import NoReference, Reference, ReferenceNetwork
from pl_prefopt.scores import PairScores
from pl_prefopt.utilities.configurable import from_config, to_config
from pl_prefopt.utilities.seeding import derive_seed
from pl_prefopt.utilities.sharding import shard

Inputs = TypeVar("Inputs")
Measurement = TypeVar("Measurement")


class PreferenceModule(ExactEvaluation, TrainableCheckpoints, Generic[Inputs, Measurement]):
    """A policy, a reference and an objective; a modality says how a batch is scored.

    loss = (1/B) sum_b weight_b * objective(scores)_b, automatic optimization. Scoring has three steps, the same for
    every modality: `prepare(batch)` gives all that policy and reference share, `measure(network, inputs, reference)`
    runs one network, the reference first and then the policy, and `assemble` makes `PairScores` of the two
    measurements. Hyper-parameters are plain values, checkpoints hold trainable tensors only, the reference never
    trains, and validation metrics are exact.

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
        self.reference: ReferenceNetwork | None = None
        remembered = isinstance(self.policy_builder, PolicyBuilder) and not isinstance(
            self.policy_builder, FromCallable
        )
        self.save_hyperparameters(
            {
                "policy": to_config(self.policy_builder) if remembered else None,
                "objective": to_config(self.objective),
                "reference": to_config(self.reference_config),
                "seed": seed,
            }
        )

    # what a modality gives

    @abstractmethod
    def prepare(self, batch: Batch) -> Inputs:
        """What policy and reference share: rows and masks, or latents, timesteps and noise."""

    @abstractmethod
    def measure(self, network: nn.Module, inputs: Inputs, reference: Measurement | None = None) -> Measurement:
        """Run one network. The reference is measured first, without gradient; the policy's pass is given its result."""

    @abstractmethod
    def assemble(self, inputs: Inputs, policy: Measurement, reference: Measurement | None) -> PairScores:
        """Scores from the two measurements; `reference` is None where the objective subtracts none."""

    @abstractmethod
    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features that feed the policy's output layer: chosen (B, T, D), its mask (B, T), rejected, its mask."""

    # scoring

    def score(self, batch: Batch) -> PairScores:
        """Scores of a batch, with gradient to the policy."""
        inputs = self.prepare(batch)
        reference = self.measure_reference(inputs)
        return self.assemble(inputs, self.measure(self.policy, inputs, reference), reference)

    def measure_reference(self, inputs: Inputs) -> Measurement | None:
        """The reference's measurement, None where the objective subtracts none."""
        if not self.needs_reference:
            return None
        assert self.reference is not None
        with self.reference.use(self.policy) as network:
            return self.measure(network, inputs)

    def measures_policy(self, reference: Measurement | None) -> bool:
        """Inside `measure`: whether the pass is the policy's, so that what only the policy needs is computed once."""
        return reference is not None or not self.needs_reference

    def losses(self, scores: PairScores) -> Tensor:
        """The objective's loss per row, (B,), times the data column `weight` where there is one.

        Raises:
            ValueError: lists of more than two for an objective of pairs, or an objective that returns another shape.
        """
        rows, samples = scores.logratios.shape
        name, needs = type(self.objective).__name__, self.objective.needs
        if samples > 2 and not scores.cells and "rejected" in needs and "list" not in needs:
            raise ValueError(
                f"the rows must have two samples for {name}, which compares chosen and rejected, got {samples}. Use an "
                "objective of lists (SoftmaxDPO, PlackettLuce, IRPO, ADPO), or make pairs of the lists."
            )
        losses = self.objective(scores)
        if losses.shape != (rows,):
            raise ValueError(f"objective {name} must return one loss per row, ({rows},), got {tuple(losses.shape)}")
        weight = scores.columns.get("weight")
        return losses if weight is None else losses * weight

    def pair_logratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-ratios of the chosen and the rejected sample, (B,) each, with gradient to the policy; for callbacks."""
        scores = self.score(batch)
        return scores.chosen, scores.rejected

    def pair_losses(self, batch: Batch) -> Tensor:
        """The weighted loss per row, (B,), with gradient to the policy; for callbacks."""
        return self.losses(self.score(batch))

    # building

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
        if self.device_mesh is not None:
            self.shard_networks()

    def shard_networks(self) -> None:
        """Under ModelParallelStrategy: shard policy and reference, each on its own."""
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

    def frozen_modules(self) -> list[nn.Module]:
        """The reference."""
        return [] if self.reference is None else [self.reference]

    # steps

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key the global generator (dropout, where it is on) by the step, so that a resumed run repeats it."""
        if getattr(self.policy_builder, "dropout", False):
            torch.manual_seed(derive_seed(self.seed, "step", self.global_step, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean over rows of the weighted objective."""
        scores = self.score(batch)
        if self.global_step == 0 and batch_idx == 0:
            self._check_start(scores)
        losses = self.losses(scores)
        loss = losses.mean()
        self.watch_loss(loss, batch.get("index"))
        means = self.means_of_ranks(self.row_metrics(scores, losses.detach()))
        self.log("train/loss", means.pop("loss"), prog_bar=True, batch_size=len(losses))
        self.log_dict({f"train/{name}": mean for name, mean in means.items()}, batch_size=len(losses))
        return loss

    def _check_start(self, scores: PairScores) -> None:
        """On the first batch, policy and reference must agree, unless another reference was asked for.

        Raises:
            ValueError: they differ by more than the rounding of their dtype explains.
        """
        expected = self.needs_reference and self.reference is not None and self.reference.starts_at_policy
        if not expected or getattr(self.policy_builder, "dropout", False):
            return
        reference = scores.ref_logps if scores.ref_logps is not None else scores.ref_errors
        size = 1.0 if reference is None else float(reference.abs().max())
        largest = float(scores.logratios.detach().abs().max())
        if largest > 0.02 * max(size, 1e-3):
            assert self.reference is not None
            raise ValueError(
                f"policy and reference must agree at the first step, got log-ratios of up to {largest:.3g} with "
                f"reference {self.reference.kind}. Were weights loaded into the policy after it was built? Give them "
                "to the policy builder (pretrained, adapter), resume with ckpt_path, or ask for reference: FrozenModel."
            )

    def measure_rows(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss and metrics of every row of an evaluation batch."""
        scores = self.score(batch)
        return self.row_metrics(scores, self.losses(scores))

    def row_metrics(self, scores: PairScores, losses: Tensor) -> dict[str, Tensor]:
        """Quantities per row, (B,) each, that become `{stage}/name`; in evaluation, lists with relevance get `ndcg`.

        Modalities add their own.
        """
        metrics = {"loss": losses, "chosen_logratio": scores.chosen.detach()}
        if scores.logratios.shape[1] == 1:
            return metrics
        rewards = self.objective.rewards(scores)
        margin = rewards[:, 0] - rewards[:, 1]
        metrics["rejected_logratio"] = scores.rejected.detach()
        metrics["accuracy"] = (margin > 0).float() + 0.5 * (margin == 0).float()
        metrics["margin"] = margin
        if "relevance" in scores.columns and not self.training:
            metrics["ndcg"] = ndcg(rewards, scores.columns["relevance"], mask=scores.mask)
        return metrics
