"""Tokenizers from folders and hub names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer by name or folder.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if _is_generic(Path(name)):
            return PreTrainedTokenizerFast.from_pretrained(name)
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"tokenizer: {name!r} could not be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}). "
            "Accepted: a folder written by save_pretrained, a reachable hub name, or TrainedTokenizer."
        ) from None


def _is_generic(folder: Path) -> bool:
    """Whether a folder's own files are the whole tokenizer.

    Beside a model's config.json, AutoTokenizer takes the class of that model family instead and gives other ids.
    """
    config = folder / "tokenizer_config.json"
    if not (config.is_file() and (folder / "tokenizer.json").is_file()):
        return False
    kind = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
    return kind in ("TokenizersBackend", "PreTrainedTokenizerFast")
