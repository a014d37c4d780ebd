"""T5, mT5 and BART: right log-probabilities, padding, step 0, sampling, and learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from pl_prefopt.logprobs.generation import generate
from pl_prefopt.modules import TextPreferenceModule
from pl_prefopt.objectives import DPO, TDPO, NormalizedDPO, SoftmaxDPO
from pl_prefopt.policies import Diffusion, FromCallable, Seq2SeqLM
from pl_prefopt.references import AutoReference, CachedReference
from tests.modules.test_text_errors import Data, trainer
from tests.tiny import VOCAB, collate, nudge, random_rows

T5 = {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5 | {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": {
        "model_type": "bart", "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "max_position_embeddings": 64, "decoder_start_token_id": 2, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "forced_eos_token_id": None,
    },
}  # fmt: skip


def policy(name: str, lora: bool = False, **options: Any) -> Seq2SeqLM:
    targets = ["q", "v"] if name != "bart" else ["q_proj", "v_proj"]
    adapters = {"r": 4, "lora_alpha": 8, "target_modules": targets} if lora else None
    return Seq2SeqLM(config=CONFIGS[name], lora=adapters, **options)


def built(name: str, *, check: bool = True, **options: Any) -> TextPreferenceModule:
    module = TextPreferenceModule(policy(name, options.pop("lora", False)), **options)
    module.configure_model()
    if check:
        module.family.check(module.policy)
    return module.train()  # type: ignore[return-value]


def expected_logps(network: Any, rows: list[dict[str, Any]]) -> Tensor:
    """Each completion on its own, without padding, by the model's own loss over its labels."""
    values = []
    for row in rows:
        for completion in row["completion_ids"]:
            loss = network(
                input_ids=torch.tensor([row["prompt_ids"]]), labels=torch.tensor([completion]), use_cache=False
            ).loss
            values.append(-loss * len(completion))
    return torch.stack(values).view(len(rows), -1)


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_equal_those_of_transformers(name: str) -> None:
    module = built(name)
    nudge(module.policy, 0.2)
    module.policy.eval()
    if name == "bart":
        module.policy.final_logits_bias.normal_()  # type: ignore[union-attr, operator]
    rows = random_rows(5)
    scores = module.score(collate(rows))
    assert scores.logps is not None
    torch.testing.assert_close(scores.logps, expected_logps(module.policy, rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_the_batch_never_matter(name: str) -> None:
    module, rows = built(name), random_rows(4)
    nudge(module.policy)
    plain = module.score(collate(rows)).logratios
    torch.testing.assert_close(module.score(collate(rows, left=True, extra=4)).logratios, plain, atol=1e-5, rtol=1e-5)
    single = torch.cat([module.score(collate(rows[i : i + 1])).logratios for i in range(4)])
    torch.testing.assert_close(single, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_at_step_zero_log_ratios_are_exactly_zero(name: str, lora: bool) -> None:
    module = built(name, lora=lora)
    scores = module.score(collate(random_rows(4)))
    assert scores.logps is not None
    assert scores.logps.requires_grad
    assert torch.equal(scores.logratios, torch.zeros(4, 2))
    assert module.objective(scores).tolist() == pytest.approx([0.6931471805599453] * 4, abs=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_encoder_runs_once_per_prompt(name: str) -> None:
    module = built(name, objective=SoftmaxDPO())
    sizes: list[int] = []
    encoder = module.policy.get_encoder()  # type: ignore[operator, union-attr]
    encoder.register_forward_hook(lambda _, args, kwargs, out: sizes.append(len(out[0])), with_kwargs=True)
    module.score(collate(random_rows(3, count=4)))
    assert sizes == [3], "and none for the reference copy, which has an encoder of its own"


@pytest.mark.parametrize("name", CONFIGS)
def test_sampling_equals_generate_and_loses_nothing(name: str) -> None:
    module = built(name)
    nudge(module.policy, 0.5)
    module.policy.eval()
    prompts = [row["prompt_ids"] for row in random_rows(3)]
    greedy = generate(module.policy, prompts, family=module.family, temperature=0, max_new_tokens=7, batch_size=2)
    for prompt, (ids,) in zip(prompts, greedy, strict=True):
        own = module.policy.generate(  # type: ignore[operator, union-attr]
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(), do_sample=False,
            max_new_tokens=7, eos_token_id=None,
        )  # fmt: skip
        assert ids == own[0, 1:].tolist()
        assert len(ids) == 7
    draws = generate(module.policy, prompts, family=module.family, count=3, max_new_tokens=4, seed=1)
    assert [[len(ids) for ids in rows] for rows in draws] == [[4] * 3] * 3
    assert draws == generate(module.policy, prompts, family=module.family, count=3, max_new_tokens=4, seed=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns_which_completion_is_preferred(name: str) -> None:
    """A toy task: chosen completions consist of low tokens, rejected ones of high ones; held-out pairs are ordered."""
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> list[dict[str, Any]]:
        def ids(low: int, high: int) -> list[int]:
            return torch.randint(low, high, (4,), generator=generator).tolist()

        return [{"prompt_ids": ids(3, VOCAB), "completion_ids": [ids(3, 30), ids(30, VOCAB)]} for _ in range(count)]

    module, training, held_out = built(name, objective=DPO(beta=0.5)), rows(256), rows(32)
    optimizer = torch.optim.AdamW(module.policy.parameters(), lr=5e-3)
    for step in range(64):
        loss = module.losses(module.score(collate(training[step % 16 * 16 :][:16]))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = module.eval().score(collate(held_out))
    assert (scores.chosen > scores.rejected).float().mean() > 0.9


def test_kl_length_normalization_and_hidden_states_work_too() -> None:
    batch = collate(random_rows(3))
    module = built("t5", objective=TDPO())
    nudge(module.policy)
    scores = module.score(batch)
    assert scores.kl is not None
    assert (scores.kl > 0).all()
    chosen, mask, _, _ = module.pair_hidden_states(batch)
    assert chosen.shape[:2] == mask.shape
    assert built("bart", objective=NormalizedDPO()).score(batch).logratios.abs().max() == 0


def test_a_run_with_a_cached_reference_equals_one_without(tmp_path: Path) -> None:
    losses = []
    for reference in (CachedReference(str(tmp_path / "cache")), AutoReference()):
        pl.seed_everything(0, verbose=False)
        module = TextPreferenceModule(policy("t5"), reference=reference, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        run = trainer(tmp_path)
        run.fit(module, datamodule=Data())
        losses.append(float(run.callback_metrics["val/loss"]))
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(0.6931471805599453, abs=1e-4)


def test_a_network_of_your_own_is_called_by_what_its_configuration_says() -> None:
    module = TextPreferenceModule(FromCallable(policy("bart")))
    module.configure_model()
    assert type(module.family).__name__ == "EncoderDecoderFamily"


def test_a_head_that_is_called_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = built("t5", check=False)
    module.policy.config.scale_decoder_outputs = False  # type: ignore[union-attr]
    monkeypatch.setattr(module.policy, "model_dim", 4)
    module.policy.config.scale_decoder_outputs = True  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"T5ForConditionalGeneration: .* must equal the model's logits"):
        module.family.check(module.policy)
    with pytest.raises(
        ValueError, match="policy must be a language model such as CausalLM or Seq2SeqLM, got Diffusion"
    ):
        _ = TextPreferenceModule(Diffusion(tiny="sd")).family
