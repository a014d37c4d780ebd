"""`ImagePreferenceModule`: diffusion and flow models of pictures on preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from pl_prefopt.diffusion.families import Family
from pl_prefopt.diffusion.processes import rowwise
from pl_prefopt.diffusion.timesteps import TimestepSampler, Uniform, Weighting
from pl_prefopt.losses import denoising_logratios, safeguard_factor
from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.diffusion_rows import (
    Condition,
    Draws,
    condition,
    moments,
    posterior_sample,
    row_draws,
    row_generators,
    text_drop,
)
from pl_prefopt.modules.evaluation import Batch
from pl_prefopt.objectives import DPO, Objective
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.references import AutoReference, CachedReference, Reference
from pl_prefopt.scores import PairScores, data_columns
from pl_prefopt.utilities.checks import choice
from pl_prefopt.utilities.configurable import from_config, to_config

SIDES = ("chosen", "rejected")
QUARTILES = tuple(f"margin_q{i}" for i in range(1, 5))


class ImagePreferenceModule(PreferenceModule):
    """Preference optimisation of a denoiser with any objective of the library (Diffusion-DPO, 2311.12908).

    e = mean over C, H, W of (prediction - target)^2 in float32; log-ratio r = -(e_policy - e_reference) / 2, so DPO's
    beta is the official one (5000). Timestep and noise are shared by the samples of a pair and by policy and
    reference, and keyed by (seed, step, row): they do not depend on batch size, accumulation or number of processes.
    Evaluation keys them by the row alone. Without cached latents the VAE and text encoders run in every step.

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
        reduction: "mean" of squared errors over C, H, W (beta does not depend on the resolution) or "sum".
        seed: keys timesteps, noise and posterior samples.

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
        self._conditioner: Any = None
        self.save_hyperparameters(
            {
                "timesteps": to_config(self.timesteps),
                "weighting": to_config(self.weighting),
                "safeguard": safeguard,
                "noise_offset": noise_offset,
                "reduction": reduction,
            }
        )

    # ---- parts -----------------------------------------------------------------------------------------------------

    @cached_property
    def family(self) -> Family:
        """How the denoiser is called, and its noise process."""
        builder: Any = self.policy_builder
        return builder.family()

    def conditioner(self) -> Any:
        """The frozen VAE and text encoders, built when they are first asked for; not part of the module tree."""
        if self._conditioner is None:
            builder: Any = self.policy_builder
            self._conditioner = builder.conditioner(self.device)
        return self._conditioner

    def setup(self, stage: str) -> None:
        """Build policy and reference."""
        self.configure_model()

    def frozen_modules(self) -> list[nn.Module]:
        """What never leaves eval mode: the policy too, without dropout, because diffusers' blocks lay their memory out
        differently in training mode, which moves last digits and so breaks policy == reference at the first step.
        """
        return [*super().frozen_modules(), *([self.policy] if hasattr(self, "policy") else [])]

    # ---- scores ----------------------------------------------------------------------------------------------------

    def rows(self, batch: Batch, count: int | None = None) -> tuple[Tensor, Draws, Condition]:
        """Clean latents (B, K, C, h, w), the random numbers of each row (B, ...), and the condition of each row."""
        turn = self.global_step if self.training else None
        mean, std = moments(batch, self.conditioner, count)
        if any(size % self.family.multiple for size in mean.shape[-2:]):
            raise ValueError(
                f"latents are {tuple(mean.shape[-2:])}, but {type(self.family).__name__} takes heights and widths that "
                f"are multiples of {self.family.multiple}; change `resolution`"
            )
        generators = row_generators(batch, len(mean), self.seed, turn)
        draws = row_draws(self.family, self.timesteps, generators, mean, batch, turn, self.noise_offset)
        x0 = posterior_sample(mean, std, generators)
        return x0, draws, condition(batch, self.family, self.conditioner, x0)

    def score(self, batch: Batch) -> PairScores:
        """Denoising errors of policy and reference on shared timesteps and noise, and their log-ratios."""
        needs = self.objective.needs
        x0, draws, cond = self.rows(batch, 1 if self.training and "rejected" not in needs else None)
        reference = None
        if self.needs_reference:
            assert self.reference is not None
            with self.reference.use(self.policy) as network:  # type: ignore[operator]
                reference = self._residuals(network, x0, draws, cond)
        policy = self._residuals(self.policy, x0, draws, cond)
        t = draws["t"]
        weights = self._weights(t, x0[0, 0].numel())
        errors, extra = self._reduce(policy.square(), weights), {}
        if self.safeguard is not None and self.training and errors.shape[1] > 1:
            scaled = policy if weights is None else policy * rowwise(weights, policy)
            errors, extra["safeguard"] = _guarded(errors, scaled, self.safeguard)
        if "error_products" in needs and reference is not None:
            extra["error_products"] = self._reduce(policy * reference, weights)
        ref_errors = None if reference is None else self._reduce(reference.square(), weights)
        subtracted = torch.zeros_like(errors) if ref_errors is None else ref_errors
        extra |= text_drop(batch, draws, t)
        return PairScores(
            logratios=denoising_logratios(errors.flatten(), subtracted.flatten()).view_as(errors),
            errors=errors,
            ref_errors=ref_errors,
            columns=data_columns(batch),
            outputs={**extra, "timestep": t, "level": self.family.process.level(t)},
        )

    def _residuals(self, network: nn.Module, x0: Tensor, draws: Draws, cond: Condition) -> Tensor:
        """(B, K, ...) prediction minus target of all samples, in one forward pass."""
        b, k = x0.shape[:2]
        spread = ({n: v.repeat_interleave(k, 0) for n, v in part.items()} for part in (draws, cond))
        return self.family.residual(network, x0.flatten(0, 1), *spread).unflatten(0, (b, k))

    def _weights(self, t: Tensor, size: int) -> Tensor | None:
        """(B,) weights of mean errors: by timestep, and times the numbers of a sample where errors are summed."""
        scale = 1 if self.reduction == "mean" else size
        if self.weighting is None:
            return None if scale == 1 else torch.full(t.shape, float(scale), device=t.device)
        return self.weighting.weights(self.family.process, t) * scale

    def _reduce(self, values: Tensor, weights: Tensor | None) -> Tensor:
        """(B, K, ...) -> (B, K): mean of each sample, weighted."""
        out = values.flatten(2).mean(-1)
        return out if weights is None else out * weights.to(out)[:, None]

    def pair_hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features that feed the denoiser's output layer at the row's timestep, (B, positions, D), all positions."""
        x0, draws, cond = self.rows(batch)
        b, k = x0.shape[:2]
        spread = ({n: v.repeat_interleave(k, 0) for n, v in part.items()} for part in (draws, cond))
        hidden = self.family.features(self.policy, x0.flatten(0, 1), *spread).unflatten(0, (b, k))
        mask = torch.ones(hidden.shape[:3], dtype=torch.bool, device=hidden.device)
        return hidden[:, 0], mask[:, 0], hidden[:, 1], mask[:, 1]

    def row_metrics(self, scores: PairScores, losses: Tensor) -> dict[str, Tensor]:
        """Adds errors of both networks, the gradient factor sigma(-margin), and the margin by quarter of noise."""
        out = super().row_metrics(scores, losses)
        for name, values in (("error", scores.errors), ("ref_error", scores.ref_errors)):
            if values is not None:
                out |= {f"{s}_{name}": v.detach() for s, v in zip(SIDES, values.unbind(1), strict=False)}
        if "safeguard" in scores.outputs:
            out["safeguard"] = scores.outputs["safeguard"]
        if "margin" in out:
            out["gradient_factor"] = torch.sigmoid(-out["margin"])
            out |= _by_quartile(out["margin"], scores.outputs["level"])
        return out

    # ---- pictures --------------------------------------------------------------------------------------------------

    def sample(
        self,
        conditions: Sequence[str],
        count: int = 1,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 5.0,
        size: Any = None,
        batch_size: int = 16,
    ) -> Tensor:
        """(N, count, 3, H, W) pictures in [0, 1], the same for the same seed, whatever is drawn beside them.

        Options are those of `pl_prefopt.diffusion.sampling.draw`.
        """
        from pl_prefopt.diffusion.sampling import draw

        options = {"count": count, "steps": steps, "guidance": guidance, "size": size or self._size(), "seed": seed}
        return draw(self.family, self.policy, self.conditioner(), conditions, batch_size=batch_size, **options)

    def _size(self) -> tuple[int, int] | None:
        """Height and width of the datamodule's pictures, where there is one that says so."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        sizes = getattr(getattr(data, "geometry", None), "sizes", None)
        return tuple(sizes[0]) if sizes else None

    def preview(self, conditions: Sequence[str], seed: int) -> Tensor:
        """One picture per caption, (N, 3, H, W) in [0, 1]."""
        with self.trainer.precision_plugin.forward_context():
            return self.sample(conditions, 1, seed)[:, 0]

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Row ids and one picture per caption, uint8 (B, 3, H, W)."""
        pictures = self.sample(batch["caption"], 1, self.seed)[:, 0]
        return {"index": batch["index"], "picture": (pictures * 255).round().to(torch.uint8)}

    def export(self, folder: str | Path) -> None:
        """Write what diffusers loads: pytorch_lora_weights.safetensors, or all weights of the denoiser."""
        builder: Any = self.policy_builder
        builder.export(self.policy, Path(folder))


def _guarded(errors: Tensor, residuals: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """Errors whose second column passes only a share of its gradient, and that share, once per row."""
    factor = safeguard_factor(residuals[:, 0].detach(), residuals[:, 1].detach(), mu=mu)
    held = errors[:, 1].detach()
    kept = held + factor * (errors[:, 1] - held)
    return torch.stack([errors[:, 0], kept, *errors.unbind(1)[2:]], 1), factor.expand(len(errors))


def _by_quartile(margin: Tensor, level: Tensor) -> dict[str, Tensor]:
    """Margins of the rows in each quarter of the noise levels; quarters without a row are left out."""
    quarter = (level.cpu() * 4).long().clamp(0, 3)
    rows = {name: (quarter == i).nonzero().flatten() for i, name in enumerate(QUARTILES)}
    return {name: margin[where.to(margin.device)] for name, where in rows.items() if len(where)}
