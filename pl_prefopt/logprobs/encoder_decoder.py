"""Encoder-decoder language models: the prompt in the encoder, once, and every completion in the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pl_prefopt.logprobs.chunked_head import Head
from pl_prefopt.logprobs.family import TokenFamily, base_model, output_layer
from pl_prefopt.logprobs.layout import EncoderDecoderRows, Tokens, encoder_decoder_rows
from pl_prefopt.logprobs.probe import (
    apply_head,
    busy_adapters,
    check_training_mode,
    difference,
    exact_products,
    learned_positions,
    networks_to_probe,
    probe_tokens,
    refuse,
    refuse_capacity,
    refuse_head,
    refuse_padding,
    rounding,
    running,
)
from pl_prefopt.utilities.padding import pad_right
from pl_prefopt.utilities.sharding import whole


class EncoderDecoderFamily(TokenFamily[EncoderDecoderRows]):
    """T5, mT5, BART and their relatives in transformers.

    Labels are the completions themselves: the decoder reads them shifted right by one, so hidden state t predicts token
    t. The output layer of T5 scales its input by d_model^-0.5 where embeddings are tied, BART's adds
    `final_logits_bias`; whether that is all is checked against the model's own logits.
    """

    def __init__(self) -> None:
        self.learned_positions = math.inf

    def check(self, *networks: nn.Module) -> None:
        """Compare prompts and completions of different lengths in one batch with the model's own logits of each alone.

        Raises:
            ValueError: the model cannot be scored, with the reason.
        """
        for network in networks:
            model = base_model(network)
            if not model.config.is_encoder_decoder:
                refuse(network, "the model must be an encoder-decoder, got a decoder alone; take policy: CausalLM")
            if _start_id(model) is None:
                raise ValueError(
                    f"{type(model).__name__}: decoder_start_token_id must be a token id, got None. Set it in `config`."
                )
            refuse_capacity(network)
            self.learned_positions = min(self.learned_positions, learned_positions(network) or math.inf)
            probes = networks_to_probe(network, self._probe_logits)
            with exact_products(), busy_adapters(network):
                for probe in probes:
                    self._check(probe)

    def _probe_logits(self, network: nn.Module) -> Tensor:
        ids = probe_tokens(network).prompt[0]
        return self._own_logits(network, ids[:4], ids[4:7])

    @torch.no_grad()
    def _check(self, network: nn.Module) -> None:
        model = base_model(network)
        tokens = probe_tokens(network, self.learned_positions, prompts=2)
        rows, head, mask = self.rows(network, tokens), self.output_head(network), tokens.mask
        with running(network):
            logits = apply_head(self.predicting_states(network, rows), head)
            alone = torch.zeros_like(logits)
            for b, k in mask.any(-1).nonzero().tolist():
                prompt, completion = tokens.prompt[b, : tokens.prompt_length[b]], tokens.completion[b, k, mask[b, k]]
                alone[b, k, mask[b, k]] = self._own_logits(network, prompt, completion)
        dtype = next(model.parameters()).dtype
        tolerance = rounding(dtype)
        longest = (0, int(tokens.length[0].argmax()))
        if (gap := difference(logits[longest], alone[longest], dtype)) > tolerance:
            refuse_head(network, gap)
        if (gap := difference(logits[mask], alone[mask], dtype)) > tolerance:
            refuse_padding(network, gap)
        check_training_mode(network, lambda: self.predicting_states(network, rows)[mask])

    def _own_logits(self, network: nn.Module, prompt: Tensor, completion: Tensor) -> Tensor:
        """(T, V) float32 logits of one completion (T,) of one prompt (P,) as the model itself gives them."""
        model = base_model(network)
        start = completion.new_full((1, 1), _start_id(model) or 0)
        return model(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            decoder_input_ids=torch.cat([start, completion[None, :-1]], 1),
            use_cache=False,
        ).logits[0].float()  # fmt: skip

    def rows(self, network: nn.Module, tokens: Tokens, extra: dict[str, Tensor] | None = None) -> EncoderDecoderRows:
        """Prompts for the encoder, completions shifted right for the decoder."""
        if extra:
            raise ValueError(f"an encoder-decoder must be given tokens alone, got {', '.join(sorted(extra))} too")
        longest = max(tokens.prompt.shape[1], tokens.completion.shape[2])
        if longest > self.learned_positions:
            raise ValueError(
                f"prompts and completions must have at most {self.learned_positions} tokens each, the positions that "
                f"the model has learned, got {longest}. Shorten rows by the datamodule's length limits."
            )
        config = base_model(network).config
        return encoder_decoder_rows(
            tokens, _start_id(base_model(network)) or 0, getattr(config, "pad_token_id", None) or 0
        )

    def predicting_states(self, network: nn.Module, rows: EncoderDecoderRows) -> Tensor:
        """(B, K, T, H); the encoder runs once per prompt, its states are repeated for the K completions."""
        model, mask = base_model(network), rows.attention_mask.long()
        with _same_kernels(model):
            encoded = model.get_encoder()(input_ids=rows.input_ids, attention_mask=mask).last_hidden_state
            # The decoder needs no padding mask: it is causal, and completions are padded on the right.
            hidden = model.get_decoder()(
                input_ids=rows.decoder_input_ids,
                encoder_hidden_states=encoded.repeat_interleave(rows.count, 0),
                encoder_attention_mask=mask.repeat_interleave(rows.count, 0),
                use_cache=False,
            ).last_hidden_state
        return hidden.unflatten(0, (-1, rows.count))

    def output_head(self, network: nn.Module) -> Head:
        """The output layer with the scale and the bias of the model's logits."""
        model, layer = base_model(network), output_layer(network)
        scale = model.config.d_model**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0
        bias = getattr(layer, "bias", None)
        logits_bias = getattr(model, "final_logits_bias", None)
        if logits_bias is not None:
            bias = logits_bias.flatten() if bias is None else bias + logits_bias.flatten()
        return Head(whole(layer.weight), whole(bias), scale)

    def sample(
        self, network: nn.Module, prompts: Sequence[Sequence[int]], pad: int, options: dict[str, Any]
    ) -> list[list[int]]:
        """One right-padded call of `generate`, without the start token of the decoder."""
        device = next(network.parameters()).device
        ids, mask = pad_right(prompts, pad)
        rows = network.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.long().to(device), pad_token_id=pad, **options
        )
        return rows[:, 1:].tolist()


def _start_id(model: Any) -> int | None:
    start = getattr(model.config, "decoder_start_token_id", None)
    return model.generation_config.decoder_start_token_id if start is None else start


def _same_kernels(model: nn.Module) -> AbstractContextManager[object]:
    """Attention kernels that do not depend on whether gradients are wanted.

    T5's position bias is a parameter. With gradient PyTorch takes its plain kernel for such a mask, without gradient a
    fused one, and the two differ in the last digits: policy and reference would not agree at the first step.
    """
    biased = any("relative_attention_bias" in name for name, _ in model.named_parameters())
    return sdpa_kernel([SDPBackend.MATH]) if biased else nullcontext()
