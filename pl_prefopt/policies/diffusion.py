"""Denoisers of diffusers pipelines by name, by folder, or tiny, with or without adapters."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pl_prefopt.adapters import check_lora
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.utilities.dtypes import dtype_named
from pl_prefopt.utilities.files import resolve_package

if TYPE_CHECKING:
    from pl_prefopt.diffusion.components import Source
    from pl_prefopt.diffusion.conditioner import PipelineConditioner
    from pl_prefopt.diffusion.families import Family


@dataclass
class Diffusion(PolicyBuilder):
    """The UNet or transformer of a text-to-image pipeline: SD 1.5, SD 2, SDXL, SD3/3.5, Flux.

    Args:
        pretrained: hub name, folder in diffusers' layout, or `package://<package>/<folder>`; exactly one of
            `pretrained` and `tiny` is given.
        tiny: a tiny model with random weights: "sd", "sd-v", "sdxl", "sd3", "flux", or "pixel" (no VAE).
        revision: branch, tag or commit of `pretrained`.
        variant: variant of its files, e.g. "fp16".
        dtype: "float32", "bfloat16" or "float16", of what is frozen: text encoders, and the denoiser below adapters.
            The VAE and everything that trains are always float32: a step of 1e-5 is lost in the 8 bits of a bfloat16
            weight.
        lora: arguments of peft.LoraConfig; `target_modules` defaults to the attention projections, `lora_alpha` to
            `r`, the initialisation to "gaussian". None trains all weights.
        adapter: folder or file of a trained adapter in diffusers' format to continue from.
        prediction_type: "epsilon", "v_prediction" or "sample", over what the scheduler's configuration says.
        gradient_checkpointing: recompute activations in backward.
        seed: seed of the weights of `tiny` and of new adapters.

    Raises:
        ValueError: both or neither of `pretrained` and `tiny`, an unknown name, dtype or adapter option.
    """

    pretrained: str | None = None
    tiny: str | None = None
    revision: str | None = None
    variant: str | None = None
    dtype: str = "float32"
    lora: dict[str, Any] | None = None
    adapter: str | None = None
    prediction_type: str | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.tiny is None):
            raise ValueError(
                f"give exactly one of pretrained (a name or folder) and tiny (e.g. 'sd'); got "
                f"pretrained={self.pretrained!r}, tiny={self.tiny!r}"
            )
        dtype_named(self.dtype)
        if self.lora is not None and self.adapter is not None:
            raise ValueError("give lora (a new adapter) or adapter (a trained one), not both")
        check_lora(self.lora)

    def source(self) -> Source:
        """Where the components come from.

        Raises:
            ValueError: diffusers is not installed, or there is no such model.
        """
        if importlib.util.find_spec("diffusers") is None:
            raise ValueError("Diffusion needs the package diffusers: pip install 'pl_prefopt[image]'")
        from pl_prefopt.diffusion.components import PretrainedSource, TinySource

        if self.tiny is not None:
            return TinySource(self.tiny, self.seed)
        assert self.pretrained is not None
        return PretrainedSource(resolve_package(self.pretrained), self.revision, self.variant)

    def __call__(self) -> nn.Module:
        """Build the denoiser alone, without dropout (eval mode); the global random state is left as it was."""
        source = self.source()
        full = self.lora is None and self.adapter is None
        network = source.component(source.kind.denoiser, torch.float32 if full else dtype_named(self.dtype))
        network.requires_grad_(True)
        if self.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._adapt(network, source)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return network.eval()

    def family(self) -> Family:
        """How the denoiser is called, and with which noise process."""
        source = self.source()
        return source.kind.family(source.process(self.prediction_type))

    def conditioner(self, device: torch.device | str = "cpu") -> PipelineConditioner:
        """A fresh copy of the frozen VAE and text encoders; drop it when the caches are filled."""
        from pl_prefopt.diffusion.conditioner import PipelineConditioner

        return PipelineConditioner(self.source(), dtype_named(self.dtype), device)

    def pipeline(self, policy: nn.Module) -> Any:
        """A diffusers pipeline around `policy`, to save or to sample with diffusers' own code."""
        return self.source().pipeline(dtype_named(self.dtype), policy)

    def export(self, policy: nn.Module, folder: Path) -> None:
        """Write what diffusers reads: `pipe.load_lora_weights(folder)`, alpha included, or a whole pipeline.

        A pipeline is read by `DiffusionPipeline.from_pretrained` and by `Diffusion(pretrained=folder)`. Adapters that
        are not in use, such as a reference's, are not written.
        """
        from pl_prefopt.adapters import has_adapters

        source = self.source()
        name = source.kind.denoiser
        if not has_adapters(policy):
            self.pipeline(policy).save_pretrained(folder)
            return
        import diffusers
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(policy, adapter_name="default")
        settings = policy.peft_config["default"].to_dict()  # type: ignore[index, union-attr]
        cls = getattr(diffusers, source.pipeline_name)
        cls.save_lora_weights(
            folder,
            **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": settings},
            safe_serialization=True,
        )

    def _adapt(self, network: Any, source: Source) -> None:
        if self.adapter is not None:
            _load_adapter(network, self.adapter, source)
        elif self.lora is not None:
            from peft import LoraConfig

            rank = self.lora.get("r", 8)
            defaults = {
                "lora_alpha": rank,
                "target_modules": list(source.kind.targets),
                "init_lora_weights": "gaussian",
            }
            network.requires_grad_(False)
            network.add_adapter(LoraConfig(**{**defaults, **self.lora}), adapter_name="default")


def _load_adapter(network: Any, path: str, source: Source) -> None:
    """Load a diffusers LoRA into the network, trainable, under the name "default"."""
    where = Path(path)
    if not where.exists():
        raise ValueError(f"adapter: {path!r} does not exist; give the folder or file that an export wrote")
    import diffusers

    cls = getattr(diffusers, source.pipeline_name)
    options: dict[str, Any] = {"weight_name": where.name} if where.is_file() else {}
    loaded = cls.lora_state_dict(str(where.parent if where.is_file() else where), return_lora_metadata=True, **options)
    state, metadata = loaded[0], loaded[-1]
    network.requires_grad_(False)
    network.load_lora_adapter(state, prefix=source.kind.denoiser, adapter_name="default", metadata=metadata)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
