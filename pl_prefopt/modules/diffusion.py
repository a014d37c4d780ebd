"""`DiffusionPreferenceModule`: diffusion and flow models of anything on preference pairs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_prefopt.diffusion.conditioner import Conditioner
from pl_prefopt.diffusion.draws import (
    conditions,
    moments,
    per_sample,
    posterior_sample,
    row_draws,
    row_generators,
    text_drop,
)
from pl_prefopt.diffusion.families import Draws, Family
from pl_prefopt.diffusion.processes import rowwise
from pl_prefopt.diffusion.timesteps import TimestepSampler, Uniform, Weighting
from pl_prefopt.losses import denoising_logratios, safeguard_factor
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.evaluation import Batch
from pl_prefopt.objectives import DPO, Objective
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.references import AutoReference, CachedReference, Reference
from pl_prefopt.scores import PairScores, data_columns
from pl_prefopt.utilities.checks import choice
from pl_prefopt.utilities.configurable import from_config, to_config

SIDES = ("chosen", "rejected")
QUARTILES = tuple(f"margin_q{i}" for i in range(1, 5))


class DenoiserBuilder(Protocol):
    """What a policy builder says of its denoiser, beside building it."""

    def __call__(self) -> nn.Module: ...

    def family(self) -> Family:
        """How the network is called, and its noise process."""
        ...

    def conditioner(self, device: torch.device) -> Conditioner:
        """The frozen encoders and decoders."""
        ...

    def export(self, policy: nn.Module, folder: Path) -> None:
        """Write what the ecosystem's own loader reads."""
        ...


@dataclass(frozen=True)
class DenoisingInputs:
    """What policy and reference share: B rows of K samples.

    Args:
        x0: (B, K, C, *latent) clean latents.
        draws: the random numbers of each row, (B, ...), among them `t` and `noise`.
        condition: what the denoiser is conditioned on, (B, ...) each.
        columns: data columns of the batch.
        text_drop: (B,) bool, rows that are trained without caption.
    """

    x0: Tensor
    draws: Draws
    condition: dict[str, Tensor]
    columns: dict[str, Tensor]
    text_drop: Tensor


class DiffusionPreferenceModule(PreferenceModule[DenoisingInputs, Tensor]):
    """Preference optimization of a denoiser with any objective of the library (Diffusion-DPO, 2311.12908).

    e = mean over channels and positions of (prediction - target)^2 in float32; log-ratio r = -(e_policy - e_ref) / 2,
    so DPO's beta is the official one (5000). Timestep and noise are shared by the samples of a pair and by policy and
    reference, and keyed by (seed, step, row): they do not depend on batch size, accumulation or number of processes.
    Evaluation keys them by the row alone. Without cached latents the encoders run in every step. Latents have one, two
    or three axes behind their channels (sound; images and spectrograms; video and volumes), as the family says.

    Args:
        policy: what to train, e.g. `Diffusion(pretrained="stabilityai/stable-diffusion-xl-base-1.0", lora={"r": 8})`.
        objective: DPO, IPO, MaPO, DiffusionKTO, ... or a mixture; None: DPO(beta=5000).
        reference: AutoReference, FrozenCopy, AdapterOff, AdapterCopy or NoReference.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, stepped per optimizer step.
        timesteps: sampler of noise levels.
        weighting: weight of errors by timestep; None weighs all by 1.
        safeguard: mu of Diffusion-SDPO in (0, 1): shrinks the loser's gradient so that the winner's error does not
            rise to first order; .9 for SD 1.5, .6 for SDXL. One factor per batch. None: off.
        noise_offset: adds this times one normal number per channel to the noise.
        reduction: "mean" of squared errors over channels and positions (beta does not depend on the resolution) or
            "sum".
        seed: keys timesteps, noise and posterior samples.
        sampling: options of `sample` for previews and `predict`, e.g. {"steps": 4, "guidance": 1.0, "size": [512, 512]}
            for models that were distilled to few steps.

    Raises:
        ValueError: safeguard outside (0, 1), an unknown reduction, a negative offset, a cached reference, or any of
            the base class.
    """

    provides: ClassVar[frozenset[str]] = PreferenceModule.provides | {"errors", "error_products"}
    metric_names: ClassVar[tuple[str, ...]] = (
        *PreferenceModule.metric_names,
        "chosen_error", "rejected_error", "chosen_ref_error", "rejected_ref_error", "gradient_factor", "safeguard",
        *QUARTILES,
    )  # fmt: skip
    sample_key: ClassVar[str] = "samples"
    """Name of the samples in a batch without cached latents."""

    def __init__(
        self,
        policy: PolicyBuilder,
        objective: Objective | None = None,
        reference: Reference = AutoReference(),  # noqa: B008
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5, weight_decay=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
        timesteps: TimestepSampler = Uniform(),  # noqa: B008
        weighting: Weighting | None = None,
        safeguard: float | None = None,
        noise_offset: float = 0.0,
        reduction: str = "mean",
        seed: int = 0,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(policy, objective or DPO(beta=5000.0), reference, optimizer, lr_scheduler, seed)
        if safeguard is not None and not 0 < safeguard < 1:
            raise ValueError(f"safeguard must lie in (0, 1) or be None, got {safeguard}")
        if not noise_offset >= 0:
            raise ValueError(f"noise_offset must be >= 0, got {noise_offset}")
        choice("reduction", reduction, ("mean", "sum"))
        if isinstance(self.reference_config, CachedReference):
            raise ValueError(
                "reference: CachedReference keeps token log-probabilities; a denoiser's errors depend on timestep and "
                "noise, which are new in every step. Use AutoReference"
            )
        if not hasattr(self.policy_builder, "family"):
            raise ValueError(
                f"policy {type(self.policy_builder).__name__} does not say how its denoiser is called; give "
                "Diffusion(...), or a builder with the methods family() and conditioner(device)"
            )
        self.timesteps = from_config(timesteps, TimestepSampler)
        self.weighting = None if weighting is None else from_config(weighting, Weighting)
        self.safeguard = safeguard
        self.noise_offset = noise_offset
        self.reduction = reduction
        self.sampling = dict(sampling or {})
        accepted = inspect.signature(self.sample).parameters
        for name in self.sampling:
            choice("sampling", name, [n for n in accepted if n not in ("conditions", "count", "seed")])
        self._conditioner: Conditioner | None = None
        self.save_hyperparameters(
            {
                "timesteps": to_config(self.timesteps),
                "weighting": to_config(self.weighting),
                "safeguard": safeguard,
                "noise_offset": noise_offset,
                "reduction": reduction,
            }
        )

    # parts

    @property
    def denoiser_builder(self) -> DenoiserBuilder:
        """The policy builder, which `__init__` has checked."""
        return cast(DenoiserBuilder, self.policy_builder)

    @cached_property
    def family(self) -> Family:
        """How the denoiser is called, and its noise process."""
        return self.denoiser_builder.family()

    def conditioner(self) -> Any:
        """The frozen encoders and decoders, built when they are first asked for; not part of the module tree."""
        if self._conditioner is None:
            self._conditioner = self.denoiser_builder.conditioner(self.device)
        return self._conditioner

    def setup(self, stage: str) -> None:
        """Build policy and reference."""
        super().setup(stage)
        self.configure_model()

    def frozen_modules(self) -> list[nn.Module]:
        """What never leaves eval mode: the policy too, without dropout, because diffusers' blocks lay their memory out
        differently in training mode, which moves last digits and so breaks policy == reference at the first step.
        """
        return [*super().frozen_modules(), *([self.policy] if hasattr(self, "policy") else [])]

    # scoring

    def prepare(self, batch: Batch) -> DenoisingInputs:
        """Clean latents, timesteps and noise, and conditions."""
        return self.noised_rows(batch, 1 if self.training and "rejected" not in self.objective.needs else None)

    def noised_rows(self, batch: Batch, count: int | None = None) -> DenoisingInputs:
        """The inputs for the first `count` samples of each row; None is all.

        Raises:
            ValueError: latents that the family cannot take, or a batch without what it is conditioned on.
        """
        step = self.global_step if self.training else None
        mean, std = moments(batch, self.conditioner, self.sample_key, count)
        self.family.check_latents(mean.shape[2:])
        generators = row_generators(batch, len(mean), self.seed, step)
        # the order of the draws is part of what a resumed run repeats: first the row's, then the posterior's
        draws = row_draws(self.family, self.timesteps, generators, mean, batch, step, self.noise_offset)
        x0 = posterior_sample(mean, std, generators)
        condition = conditions(batch, self.family, self.conditioner, x0.device)
        dropped = text_drop(batch, draws, draws["t"])["text_drop"]
        return DenoisingInputs(x0, draws, condition, data_columns(batch), dropped)

    def measure(self, network: nn.Module, inputs: DenoisingInputs, reference: Tensor | None = None) -> Tensor:
        """(B, K, ...) prediction minus target of all samples, in one forward pass."""
        rows, count = inputs.x0.shape[:2]
        draws, condition = per_sample(inputs.draws, count), per_sample(inputs.condition, count)
        residuals = self.family.residual(network, inputs.x0.flatten(0, 1), draws, condition)
        return residuals.unflatten(0, (rows, count))

    def assemble(self, inputs: DenoisingInputs, policy: Tensor, reference: Tensor | None) -> PairScores:
        """Denoising errors of policy and reference on shared timesteps and noise, and their log-ratios."""
        t = inputs.draws["t"]
        weights = self._weights(t, inputs.x0[0, 0].numel())
        outputs = {"timestep": t, "level": self.family.process.level(t), "text_drop": inputs.text_drop}
        errors = self._reduce(policy.square(), weights)
        if self.safeguard is not None and self.training and errors.shape[1] > 1:
            scaled = policy if weights is None else policy * rowwise(weights, policy)
            errors, outputs["safeguard"] = _guarded(errors, scaled, self.safeguard)
        if "error_products" in self.objective.needs and reference is not None:
            outputs["error_products"] = self._reduce(policy * reference, weights)
        ref_errors = None if reference is None else self._reduce(reference.square(), weights)
        subtracted = torch.zeros_like(errors) if ref_errors is None else ref_errors
        return PairScores(
            logratios=denoising_logratios(errors.flatten(), subtracted.flatten()).view_as(errors),
            errors=errors,
            ref_errors=ref_errors,
            columns=inputs.columns,
            outputs=outputs,
        )

    def _weights(self, t: Tensor, size: int) -> Tensor | None:
        """(B,) weights of mean errors: by timestep, and times the numbers of a sample where errors are summed."""
        scale = 1 if self.reduction == "mean" else size
        if self.weighting is None:
            return None if scale == 1 else torch.full(t.shape, float(scale), device=t.device)
        return self.weighting.weights(self.family.process, t) * scale

    def _reduce(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """(B, K, ...) -> (B, K): mean of each sample, weighted."""
        means = values.flatten(2).mean(-1)
        return means if weights is None else means * weights.to(means)[:, None]

    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features that feed the denoiser's output layer at the row's timestep, (B, positions, D), all positions."""
        inputs = self.noised_rows(batch)
        rows, count = inputs.x0.shape[:2]
        draws, condition = per_sample(inputs.draws, count), per_sample(inputs.condition, count)
        hidden = self.family.features(self.policy, inputs.x0.flatten(0, 1), draws, condition)
        hidden = hidden.unflatten(0, (rows, count))
        mask = torch.ones(hidden.shape[:3], dtype=torch.bool, device=hidden.device)
        return hidden[:, 0], mask[:, 0], hidden[:, 1], mask[:, 1]

    def row_metrics(self, scores: PairScores, losses: Tensor) -> dict[str, Tensor]:
        """Adds errors of both networks, the gradient factor sigma(-margin), and the margin by quarter of noise."""
        metrics = super().row_metrics(scores, losses)
        for name, values in (("error", scores.errors), ("ref_error", scores.ref_errors)):
            if values is not None:
                columns = zip(SIDES, values.unbind(1), strict=False)
                metrics |= {f"{side}_{name}": column.detach() for side, column in columns}
        if "safeguard" in scores.outputs:
            metrics["safeguard"] = scores.outputs["safeguard"]
        if "margin" in metrics:
            metrics["gradient_factor"] = torch.sigmoid(-metrics["margin"])
            metrics |= _by_quartile(metrics["margin"], scores.outputs["level"])
        return metrics

    # samples

    def sample(self, conditions: Sequence[str], count: int = 1, seed: int = 0, **options: Any) -> Tensor:
        """(N, count, ...) samples; a modality says of which size, and which options there are.

        Raises:
            ValueError: this modality does not sample.
        """
        raise ValueError(f"{type(self).__name__} cannot sample; it defines no method sample(conditions, count, seed)")

    def export(self, folder: str | Path) -> None:
        """Write what the ecosystem loads: adapters, or all weights of the denoiser."""
        self.denoiser_builder.export(self.policy, Path(folder))


def _guarded(errors: Tensor, residuals: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Errors whose second column passes only a share of its gradient, and that share, once per row."""
    factor = safeguard_factor(residuals[:, 0].detach(), residuals[:, 1].detach(), mu=mu)
    value = errors[:, 1].detach()
    guarded = value + factor * (errors[:, 1] - value)  # the value of the error, a share of its gradient
    return torch.stack([errors[:, 0], guarded, *errors.unbind(1)[2:]], 1), factor.expand(len(errors))


def _by_quartile(margin: Tensor, level: Tensor) -> dict[str, Tensor]:
    """Margins of the rows in each quarter of the noise levels; quarters without a row are left out."""
    quarter = (level.cpu() * 4).long().clamp(0, 3)
    rows = {name: (quarter == i).nonzero().flatten() for i, name in enumerate(QUARTILES)}
    return {name: margin[where.to(margin.device)] for name, where in rows.items() if len(where)}
