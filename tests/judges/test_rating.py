"""`VerbalisedRating` on a tiny LLaVA, against one unpadded row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pl_prefopt.judges import VerbalisedRating, judged
from pl_prefopt.judges.image.rating import RATING
from tests.judges.test_image import images, pil

WORDS = ["Excellent", "Good", "Fair", "Poor", "Bad"]
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT: "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    made = tmp_path_factory.mktemp("llava")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", extra_special_tokens={"image_token": "<image>"}
    )
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **sizes,
            "image_size": 16,
            "patch_size": 8,
            "projection_dim": 8,
        },
        text_config={"model_type": "llama", **sizes, "num_key_value_heads": 2, "vocab_size": len(tokenizer)},
        image_token_index=image,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.7)
    model.save_pretrained(made)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), tokenizer,
        patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    processor.save_pretrained(made)
    return made


def one_by_one(folder: Path, samples: list[Tensor], words: list[str], weights: list[float]) -> list[float]:
    """The text written out by hand, one row, no padding; softmax in numpy."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    out = []
    for sample in samples:
        text = f"USER: {RATING}<image> ASSISTANT: The quality of this image is "
        with torch.no_grad():
            logits = model(**processor(images=pil(sample), text=text, return_tensors="pt")).logits[0, -1].double()
        scores = np.array([float(logits[processor.tokenizer(w).input_ids[0]]) for w in words])
        p = np.exp(scores - scores.max())
        out.append(float(p @ np.array(weights) / p.sum()))
    return out


def test_equals_one_row_at_a_time(folder: Path) -> None:
    expected = one_by_one(folder, images(), WORDS, [1, 0.75, 0.5, 0.25, 0])
    for size in (1, 2, 8):
        judge = VerbalisedRating(str(folder), batch_size=size)
        assert judged(judge, [""] * 3, images()).tolist() == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 1e-3


def test_other_words_and_weights(folder: Path) -> None:
    expected = one_by_one(folder, images(), ["yes", "no"], [2, -2])
    judge = VerbalisedRating(str(folder), words=["yes", "no"], weights=[2.0, -2.0])
    assert judged(judge, [""] * 3, images()).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_trained_prompt_is_kept_to_the_letter() -> None:
    assert RATING == (
        "Assume you are an image quality evaluator. \nYour rating should be chosen from the following five categories: "
        "Excellent, Good, Fair, Poor, and Bad (from high to low). \nHow would you rate the quality of this image?"
    )
    assert VerbalisedRating().prefix == "The quality of this image is "


def test_words_that_begin_alike_are_refused(folder: Path) -> None:
    judge = VerbalisedRating(str(folder), words=["good", "great"], weights=[1.0, 0.0])
    with pytest.raises(ValueError, match="begin with different sub-tokens"):
        judge.score([""], images()[:1])
    with pytest.raises(ValueError, match="weights must be 2 numbers, one per word, got"):
        VerbalisedRating(words=["good", "bad"], weights=[1.0])
