"""Rows built for a network give each completion the log-probabilities of its own plain forward pass."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pl_prefopt.logprobs import score_tokens
from pl_prefopt.logprobs.causal import check_separate_rows, hidden_states, honours_shared_prefix, output_head
from pl_prefopt.logprobs.layout import Tokens, prefix_pays, read_tokens, separate_rows, shared_prefix_rows
from pl_prefopt.policies import CausalLM
from tests.tiny import GPT2, QWEN2, collate, random_rows

LAYOUTS = [separate_rows, shared_prefix_rows]
_LLAMA_LIKE = {k: v for k, v in QWEN2.items() if k != "model_type"}
FAMILIES = {
    "qwen2": QWEN2,
    "gpt2": GPT2,
    "llama": {"model_type": "llama", **_LLAMA_LIKE},
    "gemma2": {"model_type": "gemma2", **_LLAMA_LIKE, "head_dim": 8, "final_logit_softcapping": 3.0},
    "cohere": {"model_type": "cohere", **_LLAMA_LIKE, "logit_scale": 0.5},
    "granite": {"model_type": "granite", **_LLAMA_LIKE, "logits_scaling": 3.0},
    "gpt_neox": {"model_type": "gpt_neox", **{k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}},
}


def compact_logps(network: torch.nn.Module, tokens: Tokens, layout: object) -> Tensor:
    rows = layout(tokens)  # type: ignore[operator]
    hidden = hidden_states(network, rows).flatten(0, 1)[rows.source.flatten()]
    hidden = hidden.unflatten(0, rows.source.shape).flatten(1, 2)
    flat = score_tokens(hidden, output_head(network), tokens.completion.flatten(1), tokens.mask.flatten(1)).logps
    return flat.view(tokens.mask.shape)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_one_plain_forward_per_completion(family: str, layout: object) -> None:
    network = CausalLM(config=FAMILIES[family])().eval()
    check_separate_rows(network)
    assert honours_shared_prefix(network)
    rows = random_rows(4, count=3)
    got = compact_logps(network, read_tokens(collate(rows)), layout)
    for b, row in enumerate(rows):
        for k, completion in enumerate(row["completion_ids"]):
            ids = torch.tensor([row["prompt_ids"] + completion])
            logp = network(input_ids=ids).logits.log_softmax(-1)
            want = logp[0, :-1].gather(-1, ids[0, 1:, None])[-len(completion) :, 0]
            torch.testing.assert_close(got[b, k, : len(completion)], want, rtol=0, atol=2e-5)
            assert got[b, k, len(completion) :].abs().sum() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_side_and_amount_of_padding_do_not_matter(layout: object) -> None:
    network = CausalLM(config=QWEN2)().eval()
    rows = random_rows(3)
    plain = compact_logps(network, read_tokens(collate(rows)), layout)
    padded = compact_logps(network, read_tokens(collate(rows, left=True, extra=5)), layout)
    assert torch.equal(plain, padded)


def test_shared_prefix_mask_by_hand() -> None:
    """Prompt [5, 6], completions [7] and [8, 9]: one row 5 6 7 8 9, where 8 and 9 must not see 7."""
    tokens = Tokens(torch.tensor([[5, 6]]), torch.tensor([2]), torch.tensor([[[7, 0], [8, 9]]]), torch.tensor([[1, 2]]))
    rows = shared_prefix_rows(tokens)
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert rows.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert rows.source[0, 0, 0] == 1
    assert rows.source[0, 1].tolist() == [1, 3]


def test_prefix_pays_only_when_the_prompt_is_the_longer_part() -> None:
    def tokens(p: int, c: int) -> Tokens:
        return Tokens(torch.zeros(1, p), torch.tensor([p]), torch.zeros(1, 2, c), torch.tensor([[c, c]]))

    assert [prefix_pays(tokens(p, 4)) for p in (2, 3, 4, 5)] == [False, False, True, True]


def test_an_empty_prompt_or_completion_is_refused_by_row() -> None:
    batch = collate(random_rows(3), start=40)
    batch["completion_mask"][1, 1] = False
    with pytest.raises(ValueError, match=r"rows \[41\].*at least one token"):
        read_tokens(batch)


def test_a_recurrent_model_does_not_get_shared_prefix_rows() -> None:
    config = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 61, "state_size": 4}
    assert not honours_shared_prefix(CausalLM(config=config)().eval())


def test_rows_of_growing_batches_are_nested() -> None:
    """Adding a row never changes which ids the earlier rows hold."""
    rows = random_rows(4)
    widths = [separate_rows(read_tokens(collate(rows[:n]))).input_ids for n in (1, 2, 3, 4)]
    for small, large in pairwise(widths):
        assert torch.equal(small, large[: len(small), : small.shape[1]])
