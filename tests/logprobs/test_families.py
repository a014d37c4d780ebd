"""Families of transformers are scored right or refused, whatever their windows, layers and heads.

`python -m benchmarks.families` goes over all of them; here stand a sample and single faults.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.families import BATCHES, SAMPLE, Case, batch, plain_log_probs, policy, sweep_family
from pl_prefopt.logprobs.causal import CausalFamily
from pl_prefopt.logprobs.encoder_decoder import EncoderDecoderFamily
from pl_prefopt.logprobs.layout import read_tokens
from pl_prefopt.logprobs.probe import dropped_router_loss, rope_limits, strong_copy, windows
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import SimPO
from pl_prefopt.policies import CausalLM, Seq2SeqLM
from pl_prefopt.references import FrozenModel, NoReference
from tests.modules.test_text_errors import Data, trainer
from tests.tiny import GPT2, QWEN2, VOCAB, collate, random_rows

MIXTRAL = {**QWEN2, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": VOCAB, "state_size": 4}
WINDOWED = "shared prefix within the window"
ONLY_SEPARATE = {"bloom", "lfm2", "mamba"}
WITH_WINDOW = {"gemma2", "gemma3_text", "gpt_neo", "mistral"}


def checked(config: dict[str, Any], **options: Any) -> tuple[CausalFamily, torch.nn.Module]:
    network = CausalLM(config=config, **options)().eval()
    family = CausalFamily()
    family.check(network)
    return family, network


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_fresh_model_that_is_accepted_stays_right_when_its_weights_grow(kind: str) -> None:
    """Windows of 48 lie beyond the probe, windows of 8 within it; the third case has adapters and tied embeddings."""
    cases = [Case(48), Case(8), Case(48, lora=True, tied=True)]
    result = sweep_family(kind, kind == "t5", cases)
    assert result.verdict == "right"
    layouts = set(result.layouts.split(", "))
    if kind == "t5":
        assert layouts == {"encoder and decoder"}
    elif kind in ONLY_SEPARATE:
        assert layouts == {"separate rows"}
    else:
        assert layouts == {"separate rows", WINDOWED if kind in WITH_WINDOW else "shared prefix"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert+encoder", "the model must be causal, but what follows a token changes the logits"),
        ("bert", "hidden states times output layer must equal the model's logits"),
        ("mixtral+jitter", "the model must give the same states in training as in evaluation"),
        ("llama+dynamic", "at most 64 tokens together, got .*type dynamic rescale every row"),
        ("phi3+longrope", "at most 64 tokens together, got .*type longrope rescale every row"),
    ],
)
def test_what_would_be_wrong_is_refused_with_its_reason(kind: str, reason: str) -> None:
    verdict = sweep_family(kind, False, [Case(48)]).verdict
    assert verdict.startswith("refused: ")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(verdict)


def test_experts_with_a_capacity_are_refused() -> None:
    """They skip tokens that a batch sends beyond it, which a short probe does not see."""
    config = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "num_experts": 2}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "vocab_size": VOCAB}
    network = Seq2SeqLM(config={"model_type": "switch_transformers", **config, **ids})()
    with pytest.raises(ValueError, match="expert_capacity must be None, got 64"):
        EncoderDecoderFamily().check(network)


def test_batches_on_one_side_of_a_longrope_limit_are_right() -> None:
    """Phi-3 takes other frequencies for all rows of a batch as soon as one is longer than its original length."""
    network = policy("phi3+longrope", Case(48), False)().eval()
    family = CausalFamily()
    family.check(network)
    assert family.rope_limits == {"longrope": 64}
    for name in ("short rows", "long prompts"):
        family.rows(network, read_tokens(BATCHES[name]))
    with pytest.raises(ValueError, match="longrope"):
        family.rows(network, read_tokens(batch((60, 12), ((9, 14), (5, 6)))))


def test_rows_beyond_the_learned_positions_are_refused() -> None:
    family, network = checked(GPT2)
    with pytest.raises(ValueError, match="at most 64 tokens together, got 78: the model has learned no more positions"):
        family.rows(network, read_tokens(collate([{"prompt_ids": [5] * 70, "completion_ids": [[6] * 8, [7]]}])))


def test_a_window_is_found_in_the_text_configuration_and_by_any_name() -> None:
    for kind in ("gemma3", "gpt_neo", "modernbert-decoder", "recurrent_gemma"):
        assert 48 in windows(policy(kind, Case(48), False)()), kind
    assert not windows(policy("llama", Case(48), False)())
    assert not rope_limits(policy("llama", Case(48), False)())


def test_the_check_leaves_the_model_as_it_was() -> None:
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    network = CausalLM(config=QWEN2, lora=config)()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes, state = [m.training for m in network.modules()], torch.get_rng_state()
    CausalFamily().check(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert modes == [m.training for m in network.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in network.parameters())


def test_a_copy_with_strong_weights_shows_what_fresh_weights_hide() -> None:
    """LFM2's convolution leaks from one completion into the next, at first by less than any tolerance shows."""
    network = policy("lfm2", Case(48), False)().eval()
    assert strong_copy(network) is not None
    family = CausalFamily()
    family.check(network)
    assert not family.prefix_honoured
    with pytest.raises(ValueError, match="shared_prefix: true, but this model"):
        CausalFamily(shared_prefix=True).check(network)


def test_a_reference_of_another_kind_limits_the_layouts_too() -> None:
    """Its rows are the policy's, so a recurrent reference keeps an attention policy from sharing the prompt."""
    module = TextPreferenceModule(CausalLM(config=QWEN2), reference=FrozenModel(CausalLM(config=MAMBA)))
    data = Data()
    trainer(Path("."), max_steps=1, limit_val_batches=0).fit(module, data)
    assert isinstance(module.family, CausalFamily)
    assert not module.family.prefix_honoured


@pytest.mark.parametrize("kind", ["causal", "encoder-decoder"])
def test_a_model_that_fails_on_tokens_alone_is_refused_in_one_sentence(kind: str) -> None:
    network: Any = CausalLM(config=QWEN2)()
    if kind == "causal":
        network.model.forward = lambda **_: (_ for _ in ()).throw(KeyError("pixel_values"))
        with pytest.raises(ValueError, match=r"Qwen2ForCausalLM: the model must run on tokens alone.*KeyError"):
            CausalFamily().check(network)
    else:
        with pytest.raises(ValueError, match=r"Qwen2ForCausalLM: the model must be an encoder-decoder"):
            EncoderDecoderFamily().check(network)


def test_a_mixture_of_experts_says_that_its_router_loss_is_dropped(tmp_path: Path) -> None:
    assert dropped_router_loss(CausalLM(config=QWEN2)()) is None
    module = TextPreferenceModule(CausalLM(config=MIXTRAL), objective=SimPO(), reference=NoReference())
    with pytest.warns(UserWarning, match="router_aux_loss_coef set: .* without the router's auxiliary loss"):
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, Data())


def test_dropout_that_was_asked_for_is_no_difference_between_modes() -> None:
    family, _ = checked({**GPT2, "resid_pdrop": 0.5}, dropout=True)
    assert family.prefix_honoured


def test_plain_log_probs_are_those_of_one_row_by_hand() -> None:
    network = CausalLM(config=QWEN2)().eval()
    rows = collate(random_rows(1))
    ids = torch.cat([rows["prompt_ids"][0], rows["completion_ids"][0, 0, rows["completion_mask"][0, 0]]])[None]
    start = rows["prompt_ids"].shape[1]
    with torch.no_grad():
        logp = network(input_ids=ids).logits.log_softmax(-1)
    want = sum(float(logp[0, t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
    assert math.isclose(float(plain_log_probs(network, rows, False)[0, 0]), want, abs_tol=1e-4)
