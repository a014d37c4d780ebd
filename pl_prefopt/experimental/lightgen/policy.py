"""Masked autoregressive image models with a diffusion head, beside the frozen encoders of a diffusers pipeline."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pl_prefopt.adapters import check_lora
from pl_prefopt.policies.base import PolicyBuilder
from pl_prefopt.policies.diffusion import Diffusion
from pl_prefopt.utilities.configurable import from_config
from pl_prefopt.utilities.dtypes import dtype_named
from pl_prefopt.utilities.files import resolve_package

if TYPE_CHECKING:
    from pl_prefopt.diffusion.conditioner import PipelineConditioner
    from pl_prefopt.experimental.lightgen.family import MaskedTokens
    from pl_prefopt.experimental.lightgen.network import MaskedAutoregressive

SIZES: dict[str, dict[str, int]] = {
    "base": {"width": 768, "heads": 12, "encoder_depth": 12, "decoder_depth": 12},
    "large": {"width": 1024, "heads": 16, "encoder_depth": 16, "decoder_depth": 16},
    "huge": {"width": 1280, "heads": 16, "encoder_depth": 20, "decoder_depth": 20},
}
"""Sizes of LightGen (2503.08619); which part has how many layers is unverified. The rest are the class's defaults."""
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


@dataclass
class MaskedAutoregressivePolicy(PolicyBuilder):
    """LightGen's kind of model (2503.08619): an encoder over visible tokens, a decoder over all, a head that denoises.

    Args:
        encoders: the pipeline whose frozen VAE and text encoders are used, e.g. that of SD 3.5; `tiny: pixel` has no
            VAE, so tokens are patches of pixels.
        pretrained: folder that an export or `save_pretrained` wrote, or `package://<package>/<folder>`; exactly one of
            `pretrained` and `config`.
        config: "base", "large", "huge", or arguments of `pl_prefopt.models.MaskedAutoregressive`, for random weights.
        lora: arguments of peft.LoraConfig on the attention projections; None trains all weights.
        dtype: "float32", "bfloat16" or "float16".
        repeats: draws of timestep and noise for one mask.
        text_drop: probability that a row trains the learned empty caption, which guidance needs.
        clip: bound of the head's estimate of a clean token in sampling, 1 for pixels; None does not bound it.
        iterations: steps in which a sample's tokens become known.
        gradient_checkpointing: recompute activations in backward.
        seed: seed of random weights and of new adapters.

    Raises:
        ValueError: both or neither of `pretrained` and `config`, an unknown size, dtype or adapter option.
    """

    encoders: Diffusion
    pretrained: str | None = None
    config: str | dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    dtype: str = "float32"
    repeats: int = 4
    text_drop: float = 0.1
    clip: float | None = None
    iterations: int = 64
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.pretrained is None) == (self.config is None):
            raise ValueError(
                f"give exactly one of pretrained (a folder) and config (a size or a dict); got pretrained="
                f"{self.pretrained!r}, config={self.config!r}"
            )
        if isinstance(self.config, str) and self.config not in SIZES:
            raise ValueError(f"config must be one of {', '.join(SIZES)} or a dict of sizes, got {self.config!r}")
        dtype_named(self.dtype)
        if min(self.repeats, self.iterations) < 1 or not 0 <= self.text_drop <= 1:
            raise ValueError(
                f"repeats and iterations must be >= 1 and text_drop in [0, 1], got {self.repeats}, {self.iterations}, "
                f"{self.text_drop}"
            )
        check_lora(self.lora)
        self.encoders = from_config(self.encoders, Diffusion)

    def __call__(self) -> nn.Module:
        """Build the network; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network: Any = self._network()
            if self.dtype != "float32":
                network = network.to(dtype_named(self.dtype))
            if self.gradient_checkpointing:
                network.enable_gradient_checkpointing()
            if self.lora is not None:
                from peft import LoraConfig

                options = {"lora_alpha": self.lora.get("r", 8), "target_modules": TARGETS, **self.lora}
                network.requires_grad_(False)
                network.add_adapter(LoraConfig(**options), adapter_name="default")
        return network.train()

    def _network(self) -> MaskedAutoregressive:
        from pl_prefopt.experimental.lightgen.network import MaskedAutoregressive

        if self.pretrained is not None:
            return MaskedAutoregressive.from_pretrained(resolve_package(self.pretrained), use_safetensors=True)
        return MaskedAutoregressive(**self._sizes())

    def _sizes(self) -> dict[str, Any]:
        """Arguments of the network that is built or loaded."""
        if self.pretrained is not None:
            from pl_prefopt.experimental.lightgen.network import MaskedAutoregressive

            loaded: Any = MaskedAutoregressive.load_config(resolve_package(self.pretrained))
            return dict(loaded)
        return dict(SIZES[self.config] if isinstance(self.config, str) else self.config or {})

    def family(self) -> MaskedTokens:
        """What is random in a row, and how its error is measured."""
        from pl_prefopt.experimental.lightgen.family import MaskedTokens

        return MaskedTokens(self._sizes().get("patch", 2), self.repeats, self.text_drop, self.clip, self.iterations)

    def conditioner(self, device: torch.device | str = "cpu") -> PipelineConditioner:
        """A fresh copy of the frozen encoders; drop it when the caches are filled."""
        return self.encoders.conditioner(device)

    def export(self, policy: Any, folder: str | Path) -> None:
        """Write what `pretrained` reads; adapters are merged into it, and written by themselves beside it."""
        folder = Path(folder)
        if self.lora is None:
            policy.save_pretrained(folder)
            return
        policy.save_lora_adapter(folder / "adapter", adapter_name="default")
        merged = copy.deepcopy(policy)
        merged.fuse_lora()
        merged.unload_lora()
        merged.save_pretrained(folder)
