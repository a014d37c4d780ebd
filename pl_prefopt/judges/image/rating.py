"""Quality of a picture in the words of a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.image.batches import at_least_one, device_or_gpu, in_batches, known_dtype
from pl_prefopt.utilities.dtypes import DTYPES

RATING = (
    "Assume you are an image quality evaluator. \nYour rating should be chosen from the following five categories: "
    "Excellent, Good, Fair, Poor, and Bad (from high to low). \nHow would you rate the quality of this image?"
)


class VerbalisedRating(Judge):
    """Expected rating under a vision-language model: Q-SiT (2503.09197), Q-Align, DeQA and their like.

    One forward pass: the probabilities of the words' first sub-tokens after `prefix`, softmax over the words alone,
    mean of `weights`. The caption plays no part; combine with a judge of agreement. The defaults are Q-SiT's trained
    prompt to the letter.

    Args:
        pretrained: hub name or folder of model and processor.
        prompt: what the user asks, before the picture.
        prefix: how the answer begins.
        words: the ratings, from best to worst.
        weights: one number per word.
        batch_size: pictures per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: batch_size < 1, an unknown dtype, numbers of words and weights that differ; at the first call, words
            that begin with the same sub-token.
    """

    def __init__(
        self,
        pretrained: str = "zhangzicheng/q-sit",
        prompt: str = RATING,
        prefix: str = "The quality of this image is ",
        words: list[str] | None = None,
        weights: list[float] | None = None,
        batch_size: int = 8,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        self.words = words or ["Excellent", "Good", "Fair", "Poor", "Bad"]
        self.weights = weights or [1.0, 0.75, 0.5, 0.25, 0.0]
        if len(self.words) != len(self.weights):
            raise ValueError(f"give one weight per word; got {len(self.words)} words and {len(self.weights)} weights")
        self.pretrained, self.prompt, self.prefix, self.device = pretrained, prompt, prefix, device
        self.batch_size, self.dtype = at_least_one(batch_size), known_dtype(dtype)
        self._loaded: tuple[Any, Any, list[int]] | None = None

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) within the range of the weights."""
        return in_batches(self._ratings, conditions, samples, self.batch_size)

    def _ratings(self, captions: list[str], pictures: list[Any]) -> Tensor:
        model, processor, ids = self._load()
        turns = [{"role": "user", "content": [{"type": "text", "text": self.prompt}, {"type": "image"}]}]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        given = processor(images=pictures, text=[text] * len(pictures), padding=True, return_tensors="pt")
        tail = torch.tensor(processor.tokenizer(self.prefix, add_special_tokens=False).input_ids)
        given["input_ids"] = torch.cat([given["input_ids"], tail.expand(len(pictures), -1)], 1)
        ones = torch.ones(len(pictures), len(tail), dtype=given["attention_mask"].dtype)
        given["attention_mask"] = torch.cat([given["attention_mask"], ones], 1)
        given.pop("mm_token_type_ids", None)
        logits = model(**given.to(model.device, model.dtype)).logits[:, -1, ids].float()
        return logits.softmax(-1) @ torch.tensor(self.weights, device=logits.device)

    def _load(self) -> tuple[Any, Any, list[int]]:
        if self._loaded is None:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            processor: Any = AutoProcessor.from_pretrained(self.pretrained)
            processor.tokenizer.padding_side = "left"
            ids = [processor.tokenizer(w, add_special_tokens=False).input_ids[0] for w in self.words]
            if len(set(ids)) < len(ids):
                raise ValueError(
                    f"words {self.words} begin with the sub-tokens {ids}, of which some are the same; choose words "
                    f"that the tokenizer of {self.pretrained} tells apart at their first sub-token"
                )
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self.pretrained, dtype=DTYPES[self.dtype], use_safetensors=True
            )
            self._loaded = model.eval().to(device_or_gpu(self.device)), processor, ids
        return self._loaded
