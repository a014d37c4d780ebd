"""Seeded models of a few thousand weights in the layout of real pipelines, built offline from their configurations.

They serve tests, demos and dry runs of a configuration: every component is of the class that the real pipeline has.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

LETTERS = 77
"""Longest caption in tokens, begin and end included, as in CLIP."""

_VAE = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 4,
    "sample_size": 32,
}
_FLOW_VAE = {
    **_VAE,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.0609,
    "scaling_factor": 1.5035,
}
_CLIP = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": LETTERS,
    "projection_dim": 8,
}
_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
_UNET_XL = {
    **_UNET,
    "cross_attention_dim": 16,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "transformer_layers_per_block": [1, 2],
    "projection_class_embeddings_input_dim": 6 * 4 + 8,
}
_T5 = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_heads": 2, "num_layers": 2}
_DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
_DDPM["steps_offset"] = 1

TINY: dict[str, dict[str, Any]] = {
    "sd": {
        "pipeline": "StableDiffusionPipeline",
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": _CLIP,
        "scheduler": _DDPM,
    },
    "sd-v": {
        "pipeline": "StableDiffusionPipeline",
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": _CLIP,
        "scheduler": {**_DDPM, "prediction_type": "v_prediction"},
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": _UNET_XL,
        "vae": {**_VAE, "scaling_factor": 0.13025},
        "text_encoder": {**_CLIP, "hidden_act": "gelu"},
        "text_encoder_2": {**_CLIP, "hidden_act": "gelu"},
        "scheduler": _DDPM,
    },
    "sd3": {
        "pipeline": "StableDiffusion3Pipeline",
        "transformer": {
            "sample_size": 16,
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_projection_dim": 16,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 32,
        },
        "vae": _FLOW_VAE,
        "text_encoder": {**_CLIP, "projection": True},
        "text_encoder_2": {**_CLIP, "projection": True},
        "text_encoder_3": _T5,
        "scheduler": {"shift": 3.0},
    },
    "flux": {
        "pipeline": "FluxPipeline",
        "transformer": {
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 8,
            "axes_dims_rope": [4, 4, 8],
            "guidance_embeds": True,
        },
        "vae": _FLOW_VAE,
        "text_encoder": _CLIP,
        "text_encoder_2": _T5,
        "scheduler": {"shift": 3.0, "use_dynamic_shifting": True},
    },
    "pixel": {
        "pipeline": "StableDiffusionPipeline",
        "unet": {
            **_UNET,
            "sample_size": 16,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [24, 48],
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
        },
        "vae": None,
        "text_encoder": {**_CLIP, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
        "scheduler": {**_DDPM, "clip_sample": False},
    },
}
"""Name -> pipeline class and the configuration of each component."""


def tiny_component(name: str, part: str, seed: int, spec: Mapping[str, Any] | None = None) -> nn.Module | Any | None:
    """Build one component of a tiny pipeline: a network, a scheduler, or a tokenizer; None where it has none.

    The weights depend on (name of the pipeline, part, seed) only; the global random state is left as it was.

    Args:
        name: a key of `TINY`, or any name where `spec` is given.
        part: name of the component.
        seed: seed of the weights.
        spec: pipeline class and configurations in the form of an entry of `TINY`. The entry `words` of a text encoder
            lists whole words that its tokenizer keeps as one token; other text is split into characters.
    """
    from pl_prefopt.utilities.seeding import derive_seed

    spec = TINY[name] if spec is None else spec
    if part.startswith("tokenizer"):
        return _tokenizer(spec, part)
    if spec[part] is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "tiny", name, part))
        built = _builder(spec, part)(dict(spec[part]))
    return built.eval().requires_grad_(False) if isinstance(built, nn.Module) else built


def _builder(spec: Mapping[str, Any], part: str) -> Callable[[dict[str, Any]], Any]:
    diffusers: Any = importlib.import_module("diffusers")
    flow = "transformer" in spec
    classes: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "transformer": getattr(diffusers, _TRANSFORMERS.get(spec["pipeline"], ""), None),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDPMScheduler,
    }
    if part.startswith("text_encoder"):
        return lambda config: _text_encoder(spec, part, config)
    return lambda config: classes[part](**config)


_TRANSFORMERS = {"StableDiffusion3Pipeline": "SD3Transformer2DModel", "FluxPipeline": "FluxTransformer2DModel"}


def _text_encoder(spec: Mapping[str, Any], part: str, config: dict[str, Any]) -> nn.Module:
    import transformers

    words = len(config.pop("words", ()))
    config.pop("max_length", None)
    if "d_model" in config:
        vocab = len(_t5_vocab()) + words
        return transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=vocab, feed_forward_proj="gated-gelu", dropout_rate=0.0, **config)
        )
    vocab = _clip_vocab()
    second = part == "text_encoder_2" and spec["pipeline"] == "StableDiffusionXLPipeline"
    projected = config.pop("projection", second)
    ids = {"bos_token_id": vocab[_BEGIN], "eos_token_id": vocab[_END], "pad_token_id": vocab[_PAD]}
    clip = transformers.CLIPTextConfig(vocab_size=len(vocab) + words, **ids, **config)
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(clip)


_BEGIN, _END, _PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


def _clip_vocab() -> dict[str, int]:
    """Every byte, inside and at the end of a word: no caption is unknown, and nothing had to be trained."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return {token: i for i, token in enumerate([_BEGIN, _END, _PAD, *letters, *(f"{c}</w>" for c in letters)])}


def _t5_vocab() -> list[tuple[str, float]]:
    """Printable ASCII, one piece each."""
    letters = [chr(i) for i in range(33, 127)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *((c, -3.0) for c in letters)]


def _tokenizer(spec: Mapping[str, Any], part: str) -> Any:
    transformers: Any = importlib.import_module("transformers")
    encoder = spec[part.replace("tokenizer", "text_encoder")]
    words = encoder.get("words", [])
    longest = encoder.get("max_length", encoder.get("max_position_embeddings", LETTERS))
    if "d_model" in encoder:
        made = transformers.T5TokenizerFast(vocab=_t5_vocab(), extra_ids=0, model_max_length=longest)
    else:
        made = transformers.CLIPTokenizer(vocab=_clip_vocab(), merges=[], pad_token=_PAD, model_max_length=longest)
    made.add_tokens(words)
    return made
