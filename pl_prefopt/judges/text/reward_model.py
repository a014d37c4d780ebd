"""Reward models: sequence classifiers that read prompt and answer together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.text.models import turns_of
from pl_prefopt.logprobs.tokenizer_files import load_tokenizer
from pl_prefopt.utilities.dtypes import DTYPES


class RewardModel(Judge):
    """The output of a transformers model for sequence classification on prompt + answer.

    With a chat template the answer is the assistant's turn after the prompt (a plain prompt is one user turn); without
    one the two texts are joined. Rows are padded on the right with a token that none of them ends in, so neither the
    tokenizer's padding side nor a padding token that is also EOS moves the position that is read. One output is the
    score; of several, the log-odds of `label` against the rest.

    Args:
        pretrained: hub name or folder of model and tokenizer.
        tokenizer: hub name or folder of the tokenizer; None: that of the model.
        label: which of several outputs is the good one; None for a model with one output.
        chat_template: use the tokenizer's template; None: if it has one.
        separator: between prompt and answer where they are joined.
        max_length: tokens of a row; the beginning is cut.
        batch_size: rows per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: where it runs; None: a GPU if there is one.
        revision: branch, tag or commit.

    Raises:
        ValueError: an argument out of range; at the first call, a label that does not fit the outputs, a conversation
            without chat template, a row without a token.
    """

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        label: int | None = None,
        chat_template: bool | None = None,
        separator: str = "",
        max_length: int = 2048,
        batch_size: int = 16,
        dtype: str = "float32",
        device: str | None = None,
        revision: str | None = None,
    ) -> None:
        if max_length < 1 or batch_size < 1:
            raise ValueError(f"max_length and batch_size must be >= 1, got {max_length} and {batch_size}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.pretrained, self.tokenizer, self.label, self.chat_template = pretrained, tokenizer, label, chat_template
        self.separator, self.max_length, self.batch_size = separator, max_length, batch_size
        self.dtype, self.device, self.revision = dtype, device, revision
        self._loaded: tuple[Any, Any] | None = None

    @torch.no_grad()
    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) rewards."""
        model, tokenizer = self._load()
        rows = [self._ids(tokenizer, c, s) for c, s in zip(conditions, samples, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        out = torch.zeros(len(rows))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            out[part] = self._outputs(model, [rows[i] for i in part])
        return out

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification

            model = AutoModelForSequenceClassification.from_pretrained(
                self.pretrained, revision=self.revision or "main", dtype=DTYPES[self.dtype], use_safetensors=True
            )
            count = model.config.num_labels
            if self.label not in (range(count) if count > 1 else (None, 0)):
                raise ValueError(
                    f"label is {self.label}, but {self.pretrained} has {count} output{'s' * (count > 1)}; give "
                    f"{f'one of 0 to {count - 1}' if count > 1 else 'none'}"
                )
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._loaded = model.eval().to(device), load_tokenizer(self.tokenizer or self.pretrained)
        return self._loaded

    def _ids(self, tokenizer: Any, condition: str, sample: str) -> list[int]:
        turns = turns_of(condition)
        chat = bool(tokenizer.chat_template) if self.chat_template is None else self.chat_template
        if turns is not None and not chat:
            raise ValueError(f"the condition {condition[:60]!r} is a conversation; RewardModel needs a chat template")
        if chat:
            turns = [*(turns or [{"role": "user", "content": condition}]), {"role": "assistant", "content": sample}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = tokenizer(condition + self.separator + sample).input_ids
        if not ids:
            raise ValueError(f"the condition {condition[:60]!r} with the sample {sample[:60]!r} gives no token")
        return ids[-self.max_length :]

    def _outputs(self, model: Any, rows: Sequence[list[int]]) -> Tensor:
        last = {row[-1] for row in rows}
        pad = next(i for i in range(len(rows) + 1) if i not in last)
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        model.config.get_text_config().pad_token_id = pad
        logits = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
        if logits.shape[1] == 1:
            return logits[:, 0]
        rest = [i for i in range(logits.shape[1]) if i != self.label]
        return logits[:, self.label] - logits[:, rest].logsumexp(1)
