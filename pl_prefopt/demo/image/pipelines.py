"""The networks of the image demos: the configurations of their small pipelines, in the form of `TINY`."""

from __future__ import annotations

from typing import Any

WORDS = ["a", "red", "green", "blue", "yellow", "circle", "square", "triangle"]
"""Words of the shapes world's captions; the tokenizers keep each as one token."""
TOKENS = 8
"""Longest caption in tokens, begin and end included."""

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": TOKENS,
    "projection_dim": 32,
    "initializer_factor": 50.0,  # the encoders stay random, so captions must differ from the beginning
    "words": WORDS,
}
_VAE = {
    "block_out_channels": [8, 16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
}
_UNET = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
_DDPM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}

PIPELINES: dict[str, dict[str, Any]] = {
    "image": {
        "pipeline": "StableDiffusionPipeline",
        "unet": {**_UNET, "addition_embed_type": "text", "addition_embed_type_num_heads": 4},
        "vae": _VAE,
        "text_encoder": _TEXT,
        "scheduler": _DDPM,
    },
    "image-sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": {
            **_UNET,
            "cross_attention_dim": 64,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        },
        "vae": _VAE,
        "text_encoder": {**_TEXT, "hidden_act": "gelu"},
        "text_encoder_2": {**_TEXT, "hidden_act": "gelu"},
        "scheduler": _DDPM,
    },
    "image-flow": {
        "pipeline": "StableDiffusion3Pipeline",
        "transformer": {
            "sample_size": 4,
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_projection_dim": 64,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 64,
            "pos_embed_max_size": 8,
        },
        "vae": {**_VAE, "shift_factor": 0.0},
        "text_encoder": {**_TEXT, "projection": True},
        "text_encoder_2": {**_TEXT, "projection": True},
        "text_encoder_3": {
            "d_model": 64, "d_ff": 24, "d_kv": 4, "num_heads": 2, "num_layers": 2, "words": WORDS, "max_length": TOKENS,
        },
        "scheduler": {"shift": 3.0},
    },
    "image-lightgen": {
        "pipeline": "StableDiffusionPipeline",
        "unet": None,
        "vae": None,
        "text_encoder": {**_TEXT, "initializer_factor": 1.0},
        "scheduler": _DDPM,
    },
}  # fmt: skip
"""Name of a base -> pipeline class and the configuration of each component."""
