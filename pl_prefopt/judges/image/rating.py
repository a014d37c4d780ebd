"""Quality of an image in the words of a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.image.batches import in_batches
from pl_prefopt.utilities.checks import integer
from pl_prefopt.utilities.devices import default_device
from pl_prefopt.utilities.dtypes import dtype_named

if TYPE_CHECKING:
    from PIL.Image import Image

RATING = (
    "Assume you are an image quality evaluator. \nYour rating should be chosen from the following five categories: "
    "Excellent, Good, Fair, Poor, and Bad (from high to low). \nHow would you rate the quality of this image?"
)


@dataclass
class VerbalisedRating(Judge):
    """Expected rating under a vision-language model: Q-SiT (2503.09197), Q-Align, DeQA and their like.

    One forward pass: the probabilities of the words' first sub-tokens after `prefix`, softmax over the words alone,
    mean of `weights`. The caption is ignored; combine with a judge of agreement. The defaults are Q-SiT's trained
    prompt to the letter.

    Args:
        pretrained: hub name or folder of model and processor.
        prompt: what the user asks, before the image.
        prefix: how the answer begins.
        words: the ratings, from best to worst.
        weights: one number per word.
        batch_size: images per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: batch_size < 1, an unknown dtype, numbers of words and weights that differ; at the first call, words
            that begin with the same sub-token.
    """

    pretrained: str = "zhangzicheng/q-sit"
    prompt: str = RATING
    prefix: str = "The quality of this image is "
    words: list[str] | None = None
    weights: list[float] | None = None
    batch_size: int = 8
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        self.words = self.words or ["Excellent", "Good", "Fair", "Poor", "Bad"]
        self.weights = self.weights or [1.0, 0.75, 0.5, 0.25, 0.0]
        if len(self.words) != len(self.weights):
            raise ValueError(f"weights must be {len(self.words)} numbers, one per word, got {self.weights}")
        integer("batch_size", self.batch_size)
        dtype_named(self.dtype)

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) within the range of the weights."""
        return in_batches(self._ratings, conditions, samples, self.batch_size)

    def _ratings(self, captions: list[str], images: list[Image]) -> Tensor:
        model, processor, word_ids = self._network
        turns = [{"role": "user", "content": [{"type": "text", "text": self.prompt}, {"type": "image"}]}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = processor(images=images, text=[text] * len(images), padding=True, return_tensors="pt")
        prefix = torch.tensor(processor.tokenizer(self.prefix, add_special_tokens=False).input_ids)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], prefix.expand(len(images), -1)], 1)
        ones = torch.ones(len(images), len(prefix), dtype=inputs["attention_mask"].dtype)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], ones], 1)
        inputs.pop("mm_token_type_ids", None)  # as long as the ids without the prefix; the model makes its own
        logits = model(**inputs.to(model.device, model.dtype)).logits[:, -1, word_ids].float()
        return logits.softmax(-1) @ torch.tensor(self.weights, device=logits.device)

    @cached_property
    def _network(self) -> tuple[Any, Any, list[int]]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor: Any = AutoProcessor.from_pretrained(self.pretrained)
        processor.tokenizer.padding_side = "left"
        word_ids = [processor.tokenizer(w, add_special_tokens=False).input_ids[0] for w in self.words or ()]
        if len(set(word_ids)) < len(word_ids):
            raise ValueError(
                f"words must begin with different sub-tokens of {self.pretrained}'s tokenizer, got {self.words} with "
                f"the ids {word_ids}"
            )
        model: Any = AutoModelForImageTextToText.from_pretrained(
            self.pretrained, dtype=dtype_named(self.dtype), use_safetensors=True
        )
        return model.eval().to(default_device(self.device)), processor, word_ids
