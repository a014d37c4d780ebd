"""Masked autoregressive image model: an encoder over visible tokens, a decoder over all, a diffusion head per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from pl_prefopt.experimental.lightgen.head import DiffusionHead

INIT_STD = 0.02


class MaskedAutoregressive(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the noise of masked tokens from the visible ones and a caption (LightGen, 2503.08619, section 3.2).

    A token is a patch of patch x patch latent positions. The encoder sees visible tokens only; the decoder sees its
    output where tokens are visible, a learned mask token elsewhere, and positions; both look at the caption by
    cross-attention. The head denoises each token given the decoder's output there. `save_pretrained` and
    `from_pretrained` read and write config.json and safetensors. How the layers divide into encoder and decoder, and
    the register tokens, are our reading of the paper (unverified); the authors' files have other tensor names.

    Args:
        channels: of the latents (or 3 for pixels).
        sample_size: (height, width) of the latents that the table of positions is made for; others interpolate it.
        patch: latent positions per side of a token.
        text_dim: width of the caption's embeddings.
        width: of the transformer.
        heads: of its attention.
        encoder_depth: blocks over visible tokens.
        decoder_depth: blocks over all tokens.
        text_depth: blocks over the caption.
        registers: learned tokens that both see, so that an image without a visible token has an encoder too.
        head_width: of the diffusion head.
        head_depth: of the diffusion head.

    Raises:
        ValueError: sizes that do not divide, with the nearest that do.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        channels: int = 16,
        sample_size: Sequence[int] = (32, 32),
        patch: int = 2,
        text_dim: int = 4096,
        width: int = 768,
        heads: int = 12,
        encoder_depth: int = 12,
        decoder_depth: int = 12,
        text_depth: int = 6,
        registers: int = 4,
        head_width: int = 1536,
        head_depth: int = 8,
    ) -> None:
        super().__init__()
        _check_sizes(tuple(sample_size), patch, width, heads)
        grid = (sample_size[0] // patch, sample_size[1] // patch)
        size = channels * patch * patch
        self.gradient_checkpointing = False
        self.text_in = nn.Linear(text_dim, width)
        self.text_blocks = nn.ModuleList([_block(width, heads) for _ in range(text_depth)])
        self.null_text = _token(text_dim)
        self.token_in = nn.Linear(size, width)
        self.register_tokens = _token(registers, width)
        self.encoder_positions, self.decoder_positions = _token(width, *grid), _token(width, *grid)
        self.encoder_blocks = nn.ModuleList([_block(width, heads, text=True) for _ in range(encoder_depth)])
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_in = nn.Linear(width, width)
        self.mask_token = _token(width)
        self.decoder_blocks = nn.ModuleList([_block(width, heads, text=True) for _ in range(decoder_depth)])
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.head = DiffusionHead(size, width, head_width, head_depth)

    def forward(
        self, latents: Tensor, masked: Tensor, noisy: Tensor, timestep: Tensor, text: Tensor, text_drop: Tensor
    ) -> Tensor:
        """Predict the noise in `noisy`.

        Args:
            latents: (N, C, h, w), clean; what they hold at masked tokens has no influence.
            masked: (N, S) bool, S = tokens, row by row.
            noisy: (N, R, S, D) noisy tokens, R draws for one mask; D = C * patch^2.
            timestep: (N, R, S) in [0, 1000), one per token.
            text: (N, L, text_dim) embeddings of the captions.
            text_drop: (N,) bool, True looks at the learned empty caption instead.

        Returns:
            (N, R, S, D).
        """
        condition = self.condition(latents, masked, text, text_drop)
        return self.head(noisy, timestep, condition.unsqueeze(1))

    def condition(self, latents: Tensor, masked: Tensor, text: Tensor, text_drop: Tensor) -> Tensor:
        """(N, S, width): what the head is given at every token."""
        grid = (latents.shape[-2] // self.config["patch"], latents.shape[-1] // self.config["patch"])
        context = self._text(text, text_drop)
        tokens = self.token_in(self.patchify(latents)) + _resized(self.encoder_positions, grid)
        registers, encoded = self._encode(tokens, masked, context)
        mixed = torch.where(masked.unsqueeze(-1), self.mask_token.to(encoded.dtype), self.decoder_in(encoded))
        hidden = torch.cat([self.decoder_in(registers), mixed + _resized(self.decoder_positions, grid)], 1)
        for block in self.decoder_blocks:
            hidden = self._run(block, hidden, None, context)
        return self.norm_out(hidden[:, registers.shape[1] :])

    def patchify(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) -> (..., S, D), tokens row by row."""
        lead = latents.shape[:-3]
        patches = F.pixel_unshuffle(latents.flatten(0, -4), self.config["patch"])
        return patches.flatten(-2).transpose(-1, -2).unflatten(0, lead)

    def unpatchify(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, S, D) -> (N, C, h, w), the inverse of `patchify` for latents of (h, w) = `size`."""
        patch = self.config["patch"]
        grid = tokens.transpose(-1, -2).unflatten(-1, (size[0] // patch, size[1] // patch))
        return F.pixel_shuffle(grid, patch)

    def _text(self, text: Tensor, text_drop: Tensor) -> Tensor:
        text = torch.where(text_drop[:, None, None], self.null_text.to(text.dtype), text)
        hidden = self.text_in(text)
        for block in self.text_blocks:
            hidden = self._run(block, hidden, None, None)
        return hidden

    def _encode(self, tokens: Tensor, masked: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Registers (N, G, W), and encoded tokens (N, S, W) with zeros where masked; visible tokens are packed."""
        rows, visible = masked.shape[0], int((~masked).sum(1).max())
        order = masked.long().argsort(dim=1, stable=True)[:, :visible]  # visible tokens first
        index = order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        padding = masked.gather(1, order)
        registers = self.register_tokens.to(tokens.dtype).expand(rows, -1, -1)
        packed = tokens.gather(1, index).masked_fill(padding.unsqueeze(-1), 0.0)
        hidden = torch.cat([registers, packed], 1)
        bias = F.pad(padding, (registers.shape[1], 0)).to(tokens.dtype).unsqueeze(1) * torch.finfo(tokens.dtype).min
        for block in self.encoder_blocks:
            hidden = self._run(block, hidden, bias, context)
        hidden = self.encoder_norm(hidden)
        spread = torch.zeros_like(tokens, dtype=hidden.dtype).scatter(1, index, hidden[:, registers.shape[1] :])
        return hidden[:, : registers.shape[1]], spread

    def _run(self, block: nn.Module, hidden: Tensor, bias: Tensor | None, context: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            recompute = cast(Callable[..., Tensor], self._gradient_checkpointing_func)
            return recompute(block, hidden, bias, context)
        return block(hidden, bias, context)


def _block(width: int, heads: int, text: bool = False) -> BasicTransformerBlock:
    return BasicTransformerBlock(
        width,
        heads,
        width // heads,
        cross_attention_dim=width if text else None,
        activation_fn="gelu",
        attention_bias=True,
    )


def _token(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(1, *shape) * INIT_STD)


def _resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, S, W) of positions (1, W, a, b), interpolated where the grid is another."""
    if positions.shape[-2:] != grid:
        positions = F.interpolate(positions, grid, mode="bicubic", align_corners=False)
    return positions.flatten(2).transpose(1, 2)


def _check_sizes(sample_size: tuple[int, ...], patch: int, width: int, heads: int) -> None:
    if len(sample_size) != 2 or any(side % patch or side < patch for side in sample_size):
        raise ValueError(f"sample_size must be two multiples of patch {patch}, got {list(sample_size)}")
    if width % heads:
        raise ValueError(
            f"width must be a multiple of heads {heads}, got {width}; try {heads * max(1, width // heads)}"
        )
