"""Where the parts of a pipeline come from: a hub name, a folder in diffusers' layout, or a tiny model."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pl_prefopt.diffusion.families import SD3, Family, Flux, UNet, UNetXL
from pl_prefopt.diffusion.processes import Flow, Process, VariancePreserving
from pl_prefopt.utilities.checksums import check_complete, check_folder

INDEX = "model_index.json"
DDPM_SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler",
)  # fmt: skip
"""Samplers whose betas mean what they mean to DDPMScheduler."""
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
OTHER_PROCESSES = ("use_flow_sigmas", "invert_sigmas")
"""Settings of these samplers that change the noise process."""
LIBRARIES = ("diffusers", "transformers")
"""Packages that a folder may name; anything else would be imported by a name that somebody else wrote."""


@dataclass(frozen=True)
class Kind:
    """What a diffusers pipeline class means here.

    Args:
        denoiser: name of the component that trains.
        network: diffusers class of it.
        family: how it is called.
        flow: rectified flow instead of a DDPM-like process.
        prompts: captions that its `encode_prompt` takes, one per text encoder.
        targets: names of the linear layers that adapters sit on by default.
    """

    denoiser: str
    network: str
    family: Callable[[Process], Family]
    flow: bool
    prompts: int
    targets: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")


_JOINT = ("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out")
_ATTENTION = ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")
KINDS = {
    "StableDiffusionPipeline": Kind("unet", "UNet2DConditionModel", UNet, False, 1),
    "StableDiffusionXLPipeline": Kind("unet", "UNet2DConditionModel", UNetXL, False, 2),
    "StableDiffusion3Pipeline": Kind("transformer", "SD3Transformer2DModel", SD3, True, 3, _ATTENTION + _JOINT),
    "FluxPipeline": Kind("transformer", "FluxTransformer2DModel", Flux, True, 2, _ATTENTION),
}
"""Pipeline class, as model_index.json names it -> its kind."""


class Source(ABC):
    """Gives the components of one pipeline.

    Args:
        pipeline: its class name.
        parts: component name -> whether it is there; schedulers and tokenizers included.
    """

    def __init__(self, pipeline: str, parts: dict[str, bool]) -> None:
        self.pipeline_name = pipeline
        self.parts = parts
        self.kind = KINDS[pipeline]

    @abstractmethod
    def component(self, name: str, dtype: torch.dtype) -> Any:
        """A fresh component; networks frozen, in eval mode, on the CPU."""

    @abstractmethod
    def scheduler(self) -> Any:
        """The training scheduler: DDPMScheduler or FlowMatchEulerDiscreteScheduler."""

    @abstractmethod
    def denoiser_config(self) -> dict[str, Any]:
        """Configuration of the denoiser, without its weights."""

    def process(self, prediction: str | None) -> Process:
        """The noise process that the scheduler's configuration describes.

        Raises:
            ValueError: a prediction type for a flow model, or an unknown one.
        """
        scheduler = self.scheduler()
        if not self.kind.flow:
            return VariancePreserving(scheduler, prediction)
        if prediction is not None:
            raise ValueError(
                f"prediction_type is {prediction!r}, but {self.pipeline_name} is a flow matching model, which predicts "
                "noise minus data; leave it unset"
            )
        return Flow(scheduler)

    def pipeline(
        self, dtype: torch.dtype, denoiser: nn.Module | None, only: Callable[[str], bool] | None = None
    ) -> Any:
        """A diffusers pipeline around `denoiser`, its VAE in float32; components that `only` refuses are None."""
        cls = getattr(importlib.import_module("diffusers"), self.pipeline_name)
        built: dict[str, Any] = {}
        for name, present in self.parts.items():
            wanted = present and name != self.kind.denoiser and (only is None or only(name))
            built[name] = self.component(name, torch.float32 if name == "vae" else dtype) if wanted else None
        built["scheduler"] = self.scheduler() if built.get("scheduler") is None else built["scheduler"]
        built[self.kind.denoiser] = denoiser
        if self.pipeline_name == "StableDiffusionPipeline":
            built |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return cls(**built)


class TinySource(Source):
    """A tiny model with random weights.

    Args:
        name: a key of `pl_prefopt.diffusion.tiny.TINY`, or any name where `spec` is given.
        seed: seed of the weights.
        spec: pipeline class and configurations in the form of an entry of `TINY`.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str, seed: int, spec: Mapping[str, Any] | None = None) -> None:
        from pl_prefopt.diffusion.tiny import TINY

        if spec is None and name not in TINY:
            raise ValueError(f"tiny must be one of {', '.join(TINY)}, got {name!r}")
        self.name = name
        self.seed = seed
        self.spec = spec = TINY[name] if spec is None else spec
        parts = {part: config is not None for part, config in spec.items() if part != "pipeline"}
        parts |= {p.replace("text_encoder", "tokenizer"): v for p, v in parts.items() if p.startswith("text_encoder")}
        super().__init__(spec["pipeline"], parts)

    def component(self, name: str, dtype: torch.dtype) -> Any:
        """Built from its configuration."""
        from pl_prefopt.diffusion.tiny import tiny_component

        built = tiny_component(self.name, name, self.seed, self.spec)
        return built.to(dtype) if isinstance(built, nn.Module) and dtype != torch.float32 else built

    def denoiser_config(self) -> dict[str, Any]:
        """That of a freshly built one."""
        return dict(self.component(self.kind.denoiser, torch.float32).config)

    def scheduler(self) -> Any:
        """Built from its configuration."""
        return self.component("scheduler", torch.float32)


class PretrainedSource(Source):
    """A hub repository or a folder in diffusers' layout, safetensors only.

    Args:
        name: hub name or folder.
        revision: branch, tag or commit.
        variant: e.g. "fp16".

    Raises:
        ValueError: no model_index.json, or a pipeline class that is not supported.
    """

    def __init__(self, name: str, revision: str | None = None, variant: str | None = None) -> None:
        self.name = name
        self.options = {"revision": revision, "variant": variant}
        index = json.loads(self._index().read_text())
        pipeline = index.get("_class_name")
        if pipeline not in KINDS:
            raise ValueError(
                f"pretrained {name!r} holds a {pipeline}; supported are {', '.join(KINDS)}. Give the folder of a "
                "text-to-image pipeline"
            )
        parts = {k: v[0] is not None for k, v in index.items() if isinstance(v, list) and len(v) == 2}
        unused = ("safety_checker", "feature_extractor", "image_encoder")
        super().__init__(pipeline, {k: v for k, v in parts.items() if k not in unused})
        self._classes = {k: v for k, v in index.items() if k in parts}

    def _index(self) -> Path:
        if Path(self.name).is_dir():
            path = Path(self.name) / INDEX
            if not path.is_file():
                raise ValueError(
                    f"pretrained: the folder {self.name} has no {INDEX}, so it is not a diffusers pipeline; give a "
                    "folder that `pipeline.save_pretrained` wrote"
                )
            return path
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.name, INDEX, revision=self.options["revision"]))
        except Exception as error:
            raise ValueError(
                f"pretrained {self.name!r} is neither a folder here nor a pipeline that the hub gave ({error})"
            ) from error

    def denoiser_config(self) -> dict[str, Any]:
        """Read from its folder."""
        cls: Any = getattr(importlib.import_module("diffusers"), self.kind.network)
        options: dict[str, Any] = {k: v for k, v in self.options.items() if k == "revision" and v is not None}
        return dict(cls.load_config(self.name, subfolder=self.kind.denoiser, **options))

    def component(self, name: str, dtype: torch.dtype) -> Any:
        """Loaded from its sub-folder by the class that model_index.json names."""
        library, cls_name = self._classes[name]
        cls = getattr(importlib.import_module(library), cls_name, None) if library in LIBRARIES else None
        if cls is None:
            raise ValueError(
                f"{self.name}: component {name} of {INDEX} must be a class of {' or '.join(LIBRARIES)}, got "
                f"{cls_name} of {library}"
            )
        options: dict[str, Any] = {"subfolder": name, "revision": self.options["revision"]}
        if name == "scheduler" or name.startswith("tokenizer"):
            return cls.from_pretrained(self.name, **{k: v for k, v in options.items() if v is not None})
        options |= {"variant": self.options["variant"], "use_safetensors": True}
        options["torch_dtype" if library == "diffusers" else "dtype"] = dtype
        check_folder(Path(self.name) / name)
        present = {k: v for k, v in options.items() if v is not None}
        network, loading = cls.from_pretrained(self.name, output_loading_info=True, **present)
        check_complete(f"{self.name}/{name}", network, loading["missing_keys"])
        return network.eval().requires_grad_(False)

    def scheduler(self) -> Any:
        """The training scheduler with the noise schedule of the sampler that the folder holds.

        Raises:
            ValueError: a sampler of another noise process, or of a schedule that training would not follow.
        """
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        cls = FlowMatchEulerDiscreteScheduler if self.kind.flow else DDPMScheduler
        options: dict[str, Any] = {k: v for k, v in self.options.items() if k == "revision" and v is not None}
        config: dict[str, Any] = cls.load_config(self.name, subfolder="scheduler", **options)  # type: ignore[assignment]
        accepted = FLOW_SCHEDULERS if self.kind.flow else DDPM_SCHEDULERS
        if config["_class_name"] not in accepted:
            raise ValueError(
                f"{self.name}: the scheduler must be one of {', '.join(accepted)} for {self.pipeline_name}, got "
                f"{config['_class_name']}, whose noise process training would not follow"
            )
        other = [name for name in OTHER_PROCESSES if config.get(name)]
        if other:
            raise ValueError(f"{self.name}: the scheduler must not have {other[0]}, got {config[other[0]]!r}")
        return cls.from_config(config)
