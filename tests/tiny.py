"""Tiny models and batches that the tests of several folders share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pl_prefopt.policies import CausalLM

VOCAB = 61
QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": VOCAB,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def tiny_lm(lora: bool = False, **options: Any) -> CausalLM:
    """A two-layer Qwen2 of 16 hidden units."""
    return CausalLM(config=options.pop("config", QWEN2), lora=LORA if lora else None, **options)


def random_rows(n: int, *, seed: int = 0, count: int = 2, prompt: int = 9, completion: int = 6) -> list[dict[str, Any]]:
    """Rows of random token ids with random lengths, as a datamodule would hold them."""
    g = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> list[int]:
        size = int(torch.randint(1, longest + 1, (1,), generator=g))
        return torch.randint(3, VOCAB, (size,), generator=g).tolist()

    return [{"prompt_ids": ids(prompt), "completion_ids": [ids(completion) for _ in range(count)]} for _ in range(n)]


def collate(rows: list[dict[str, Any]], *, left: bool = False, extra: int = 0, start: int = 0) -> dict[str, Tensor]:
    """A text batch of `rows`, padded on the right or on the left, with `extra` needless padding."""
    count = len(rows[0]["completion_ids"])
    width = max(len(r["prompt_ids"]) for r in rows) + extra
    height = max(len(c) for r in rows for c in r["completion_ids"]) + extra
    batch = {
        "prompt_ids": torch.zeros(len(rows), width, dtype=torch.long),
        "prompt_mask": torch.zeros(len(rows), width, dtype=torch.bool),
        "completion_ids": torch.zeros(len(rows), count, height, dtype=torch.long),
        "completion_mask": torch.zeros(len(rows), count, height, dtype=torch.bool),
        "index": torch.arange(start, start + len(rows)),
    }
    for b, row in enumerate(rows):
        _place(batch["prompt_ids"][b], batch["prompt_mask"][b], row["prompt_ids"], left)
        for k, ids in enumerate(row["completion_ids"]):
            _place(batch["completion_ids"][b, k], batch["completion_mask"][b, k], ids, left)
    return batch


def _place(target: Tensor, mask: Tensor, ids: list[int], left: bool) -> None:
    where = slice(len(target) - len(ids), None) if left else slice(0, len(ids))
    target[where] = torch.tensor(ids)
    mask[where] = True


def nudge(network: torch.nn.Module, scale: float = 0.3, seed: int = 7) -> None:
    """Move every trainable parameter, so that policy and reference differ."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p += scale * torch.randn(p.shape, generator=g)
