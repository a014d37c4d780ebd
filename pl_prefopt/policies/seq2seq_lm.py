"""Encoder-decoder language models by name or from a configuration, with or without adapters."""

from __future__ import annotations

from typing import Any, ClassVar

from pl_prefopt.logprobs.encoder_decoder import EncoderDecoderFamily
from pl_prefopt.logprobs.family import TokenFamily
from pl_prefopt.policies.causal_lm import CausalLM


class Seq2SeqLM(CausalLM):
    """A transformers encoder-decoder (T5, mT5, BART, ...), loaded by name or built from its configuration.

    Takes the arguments of `CausalLM`. The encoder reads the prompt once, whatever the number of completions; the
    decoder scores every completion. What it saves is read by `AutoModelForSeq2SeqLM`.
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    task: ClassVar[str] = "SEQ_2_SEQ_LM"

    def family(self) -> TokenFamily[Any]:
        """How the network is called."""
        return EncoderDecoderFamily()
