"""Reward models: sequence classifiers that read prompt and answer together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.text.models import turns_of
from pl_prefopt.logprobs.tokenizer_files import load_tokenizer
from pl_prefopt.utilities.checks import integer
from pl_prefopt.utilities.devices import default_device
from pl_prefopt.utilities.dtypes import dtype_named
from pl_prefopt.utilities.padding import pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class RewardModel(Judge):
    """The output of a transformers model for sequence classification on prompt + answer.

    With a chat template the answer is the assistant's turn after the prompt (a plain prompt is one user turn); without
    one the two texts are joined. Rows are padded on the right with a token that none of them ends in, so neither the
    tokenizer's padding side nor a padding token that is also EOS moves the position that is read. One output is the
    score; of several, the log-odds of `label` against the rest.

    Args:
        pretrained: hub name or folder of model and tokenizer.
        tokenizer: hub name or folder of the tokenizer; None: that of the model.
        label: index of the output for good answers among several; None for a model with one output.
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

    pretrained: str
    tokenizer: str | None = None
    label: int | None = None
    chat_template: bool | None = None
    separator: str = ""
    max_length: int = 2048
    batch_size: int = 16
    dtype: str = "float32"
    device: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        integer("max_length", self.max_length)
        integer("batch_size", self.batch_size)
        dtype_named(self.dtype)

    @torch.no_grad()
    def score(self, conditions: Sequence[str], samples: Sequence[str]) -> Tensor:
        """(B,) rewards."""
        model, tokenizer = self._network
        rows = [self._ids(tokenizer, c, s) for c, s in zip(conditions, samples, strict=True)]
        longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        rewards = torch.zeros(len(rows))
        for start in range(0, len(rows), self.batch_size):
            batch = longest_first[start : start + self.batch_size]
            rewards[batch] = self._rewards(model, [rows[i] for i in batch])
        return rewards

    @cached_property
    def _network(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(
            self.pretrained, revision=self.revision or "main", dtype=dtype_named(self.dtype), use_safetensors=True
        )
        count = model.config.num_labels
        if self.label not in (range(count) if count > 1 else (None, 0)):
            accepted = f"0 to {count - 1}" if count > 1 else "None"
            raise ValueError(
                f"label must be {accepted} for the {count} output{'s' * (count > 1)} of {self.pretrained}, got "
                f"{self.label}"
            )
        return model.eval().to(default_device(self.device)), load_tokenizer(self.tokenizer or self.pretrained)

    def _ids(self, tokenizer: PreTrainedTokenizerBase, condition: str, sample: str) -> list[int]:
        turns = turns_of(condition)
        chat = bool(tokenizer.chat_template) if self.chat_template is None else self.chat_template
        if turns is not None and not chat:
            raise ValueError(f"the condition {condition[:60]!r} is a conversation; RewardModel needs a chat template")
        if chat:
            turns = [*(turns or [{"role": "user", "content": condition}]), {"role": "assistant", "content": sample}]
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
            ids = tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = tokenizer(condition + self.separator + sample).input_ids
        if not ids:
            raise ValueError(f"the condition {condition[:60]!r} with the sample {sample[:60]!r} gives no token")
        return ids[-self.max_length :]

    def _rewards(self, model: PreTrainedModel, rows: Sequence[list[int]]) -> Tensor:
        # transformers reads the output of the last token that is not padding, and finds it by its id alone: pad with
        # an id in which no row ends.
        last = {row[-1] for row in rows}
        pad = next(i for i in range(len(rows) + 1) if i not in last)
        ids, mask = pad_right(rows, pad)
        model.config.get_text_config().pad_token_id = pad
        output = model(input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device))
        logits = output.logits.float().cpu()
        if logits.shape[1] == 1:
            return logits[:, 0]
        others = [i for i in range(logits.shape[1]) if i != self.label]
        return logits[:, self.label] - logits[:, others].logsumexp(1)
