"""Samples of a text policy for prompts of its datamodule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pl_prefopt.logprobs.generation import generate

if TYPE_CHECKING:
    from pl_prefopt.modules.text import TextPreferenceModule


def sample_texts(
    module: TextPreferenceModule, conditions: Sequence[str], count: int, seed: int, **options: Any
) -> list[list[str]]:
    """`count` continuations per prompt, decoded with the datamodule's tokenizer; prompts as they are in training.

    Raises:
        ValueError: no datamodule with a tokenizer, or arguments that `generate` refuses.
    """
    data: Any = getattr(module.trainer, "datamodule", None)
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("sampling of texts needs a datamodule with a tokenizer, as TextPreferenceDataModule has")
    encode = data.prompt_ids if hasattr(data, "prompt_ids") else lambda c: tokenizer(c).input_ids
    prompts = [encode(c) for c in conditions]
    with module.trainer.precision_plugin.forward_context():
        drawn = generate(
            module.policy,
            prompts,
            count=count,
            seed=seed,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            **options,
        )
    return [[_behind(tokenizer, p, row) for row in rows] for p, rows in zip(prompts, drawn, strict=True)]


def _behind(tokenizer: Any, prompt: list[int], row: list[int]) -> str:
    """Text of a continuation, with the blank that a tokenizer may drop at the beginning of a text."""

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    start, whole = text(prompt), text([*prompt, *row])
    return whole[len(start) :] if whole.startswith(start) else text(row)
