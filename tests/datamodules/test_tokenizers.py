"""Tokenizers that come back as they were saved."""

from __future__ import annotations

from pathlib import Path

from pl_prefopt.datamodules.tokenizers import TrainedTokenizer, load_tokenizer
from tests.tiny import tiny_lm


def test_a_trained_tokenizer_beside_a_model_keeps_its_ids(tmp_path: Path) -> None:
    """A model's config.json in the same folder must not turn it into that family's tokenizer."""
    builder = TrainedTokenizer(vocab_size=40, kind="word")
    tokenizer = builder(lambda: iter(["ash bay cut dew", "elm fog gum hay"]), "key", tmp_path / "cache")
    tiny_lm()().save_pretrained(tmp_path / "both")  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(tmp_path / "both")
    again = load_tokenizer(str(tmp_path / "both"))
    assert again("ash gum bay").input_ids == tokenizer("ash gum bay").input_ids
    assert len(set(again("ash gum bay").input_ids)) >= 3
