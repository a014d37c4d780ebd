"""The frozen side of a pipeline: text encoders and VAE, used to fill caches, to sample, and where nothing is cached."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pl_prefopt.diffusion.components import Source
from pl_prefopt.utilities.digests import json_digest, tensors_digest

DECODE_AT_ONCE = 4


class Conditioner(Protocol):
    """The frozen side of a model: texts to embeddings, samples to latents and back; a pipeline of diffusers, or not."""

    device: torch.device

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the family is conditioned on, by name, rows first."""
        ...

    def unconditional(self, count: int) -> dict[str, Tensor]:
        """The same for no caption: what guidance subtracts."""
        ...

    def encode(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (N, ...) -> mean and standard deviation (N, C, *latent) float32 of the latent posterior."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as `encode` gives them -> samples."""
        ...

    def fingerprint(self) -> str:
        """Key of everything that is cached from these networks."""
        ...


class PipelineConditioner:
    """Text encoders and VAE of a text-to-image pipeline of diffusers; they never train, never leave eval mode.

    Args:
        source: where the components come from.
        dtype: of the text encoders; the VAE is always float32, since several VAEs overflow in half precision.
        device: where the networks are put.
    """

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.source = source
        self.device = torch.device(device)
        self.pipe = source.pipeline(dtype, None)
        self.vae: Any = self.pipe.vae
        if source.parts.get("text_encoder_3") is False:
            # SD3 without its T5: the pipeline asks the transformer how wide the zeros in its place have to be
            self.pipe.transformer = SimpleNamespace(config=SimpleNamespace(**source.denoiser_config()))
        statistics = [name for name in ("latents_mean", "latents_std") if self._vae_setting(name) is not None]
        if statistics:
            raise ValueError(
                f"the VAE must be normalized by scaling_factor and shift_factor alone, got {' and '.join(statistics)}, "
                "which training would not follow"
            )
        for network in self.networks():
            network.to(self.device).eval().requires_grad_(False)

    def networks(self) -> list[nn.Module]:
        """Text encoders and VAE."""
        return [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side; 1 without a VAE."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of images of (height, width) pixels."""
        return self.channels, size[0] // self.factor, size[1] // self.factor

    @property
    def channels(self) -> int:
        """Channels of a latent; 3 without a VAE."""
        return 3 if self.vae is None else self.vae.config.latent_channels

    # text

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`prompt_embeds` (N, L, D) and, where the family has them, `pooled` (N, P), by the pipeline's own code."""
        if isinstance(captions, str):
            raise ValueError(f"captions must be a list of strings, got the string {captions!r}")
        prompts: list[Any] = [list(captions)] + [None] * (self.source.kind.prompts - 1)
        options: dict[str, Any] = {"device": self.device, "num_images_per_prompt": 1}
        if self.source.pipeline_name != "FluxPipeline":
            options["do_classifier_free_guidance"] = False
        length = self._sequence_length()
        if length is not None:
            options["max_sequence_length"] = length
        embeds, *rest = self.pipe.encode_prompt(*prompts, **options)
        pooled = next((v for v in rest if v is not None and v.dim() == 2 and len(v) == len(captions)), None)
        return {"prompt_embeds": embeds} if pooled is None else {"prompt_embeds": embeds, "pooled": pooled}

    def cut_captions(self, captions: Sequence[str]) -> int:
        """Number of captions that are longer than the longest that a text encoder reads."""
        named = [getattr(self.pipe, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
        tokenizers = [tokenizer for tokenizer in named if tokenizer is not None]
        if not tokenizers:
            return 0
        limits = [tokenizer.model_max_length for tokenizer in tokenizers[:-1]]
        limits.append(self._sequence_length() or tokenizers[-1].model_max_length)
        limit = max(limits)
        lengths = map(len, tokenizers[limits.index(limit)](list(captions), verbose=False)["input_ids"])
        return sum(length > limit for length in lengths)

    def _sequence_length(self) -> int | None:
        """Tokens of the T5 encoder: the pipeline's default, or less where the tokenizer allows less."""
        last = getattr(self.pipe, f"tokenizer_{self.source.kind.prompts}", None)
        if not self.source.kind.flow or last is None:
            return None
        default = 512 if self.source.pipeline_name == "FluxPipeline" else 256
        return min(default, last.model_max_length)

    def unconditional(self, count: int) -> dict[str, Tensor]:
        """What guidance subtracts: the empty caption, or zeros where the pipeline was trained with zeros (SDXL)."""
        one = self.encode_text([""])
        if self.pipe.config.get("force_zeros_for_empty_prompt"):
            one = {key: torch.zeros_like(value) for key, value in one.items()}
        return {key: value.expand(count, *value.shape[1:]) for key, value in one.items()}

    # images

    @torch.no_grad()
    def encode(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent posterior, (N, C, h, w) float32, shifted and scaled for training.

        Args:
            samples: (N, 3, H, W) pixels in [-1, 1], H and W multiples of `factor`. Without a VAE they are their own
                latents.

        Raises:
            ValueError: a size that the VAE cannot take, or latents that are not finite.
        """
        height, width = samples.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"images must have a height and a width that are multiples of {self.factor}, the factor of the VAE, "
                f"got {height} x {width} pixels. Change `resolution`."
            )
        if self.vae is None:
            return samples.float(), torch.zeros_like(samples, dtype=torch.float32)
        posterior = self.vae.encode(samples.to(self.device, self.vae.dtype)).latent_dist
        shift, scale = self._shift_and_scale()
        mean, std = (posterior.mean.float() - shift) * scale, posterior.std.float() * scale
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise ValueError(
                f"the VAE gave latents that are not finite in {self.vae.dtype}; run it in float32, or use a VAE that "
                "was repaired for half precision"
            )
        return mean, std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] of latents (N, C, h, w) as `encode` gives them.

        Raises:
            ValueError: pixels that are not finite.
        """
        if self.vae is not None:
            shift, scale = self._shift_and_scale()
            latents = latents.to(self.device, self.vae.dtype) / scale + shift
            # in slices: the decoder's activations are hundreds of times larger than the latents
            latents = torch.cat([self.vae.decode(part).sample for part in latents.split(DECODE_AT_ONCE)])
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("the decoded images are not finite; run the VAE in float32, and look at the latents")
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def _vae_setting(self, name: str) -> Any:
        return None if self.vae is None else getattr(self.vae.config, name, None)

    def _shift_and_scale(self) -> tuple[float, float]:
        config = self.vae.config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor

    # identity

    def fingerprint(self) -> str:
        """Hash of VAE, text encoders and tokenizers: the key of everything that is cached from them."""
        networks = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        tensors = ((f"{name}.{key}", v) for name, part in networks.items() for key, v in part.state_dict().items())
        settings = {name: _settings(part) for name, part in networks.items()}
        tokenizers = {
            name: _tokenizer_settings(part)
            for name, part in self.pipe.components.items()
            if name.startswith("tokenizer")
        }
        return json_digest([self.source.pipeline_name, settings, tokenizers, tensors_digest(tensors)])


def _tokenizer_settings(tokenizer: Any) -> list[Any]:
    """All that decides which ids a caption gets, the token that pads it included."""
    if tokenizer is None:
        return []
    core = json.loads(tokenizer.backend_tokenizer.to_str()) if hasattr(tokenizer, "backend_tokenizer") else {}
    vocabulary = core or sorted(tokenizer.get_vocab().items())
    if isinstance(vocabulary, dict):  # these two change with every padded call
        vocabulary = {name: value for name, value in vocabulary.items() if name not in ("padding", "truncation")}
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return [
        type(tokenizer).__name__,
        special,
        tokenizer.model_max_length,
        tokenizer.padding_side,
        json_digest(vocabulary),
    ]


def _settings(part: Any) -> str:
    """The configuration of a network without what depends on where it was loaded from."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()
    config = {k: v for k, v in dict(config).items() if not k.startswith("_") and k not in ("dtype", "torch_dtype")}
    return str(sorted((k, str(v)) for k, v in config.items() if k not in ("transformers_version", "architectures")))
