"""Judges that hold models, against one plain forward pass per row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from pl_prefopt.demo.text.data import sentiment_tokenizer
from pl_prefopt.judges import ImplicitReward, RewardModel, judged
from tests.tiny import GPT2, LORA, QWEN2, nudge, tiny_lm

PROMPTS = ["a review of the soup:", "a review of the film:", "a review of the soup:"]
SAMPLES = [" good", " not very bad", " hot"]
TEMPLATE = "{% for m in messages %}{{ m.content }} {{ 'very' if m.role == 'user' else '<eos>' }}{% endfor %}"


def saved(
    folder: Path, config: dict[str, Any], outputs: int = 1, template: str | None = None, eos_pad: bool = False
) -> str:
    """Folder of a tiny classifier with the demo's tokenizer."""
    torch.manual_seed(0)
    options = {k: v for k, v in config.items() if k not in ("model_type", "pad_token_id")}
    made = AutoConfig.for_model(config["model_type"], **options, num_labels=outputs, pad_token_id=2 if eos_pad else 0)
    AutoModelForSequenceClassification.from_config(made).save_pretrained(folder)
    tokenizer = sentiment_tokenizer()
    tokenizer.chat_template = template
    if eos_pad:
        tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    tokenizer.save_pretrained(folder)
    return str(folder)


def alone(folder: str, ids: list[int]) -> torch.Tensor:
    """Outputs for one row, without padding; the token read is the last one."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("config", [QWEN2, GPT2], ids=["qwen2", "gpt2"])
@pytest.mark.parametrize("eos_pad", [False, True])
def test_padding_moves_no_reward(config: dict[str, Any], eos_pad: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path, config, eos_pad=eos_pad)
    judge = RewardModel(folder, separator=" very", device="cpu")
    samples = [*SAMPLES[:2], " hot<eos>" if eos_pad else " hot<pad>"]
    made = judged(judge, PROMPTS, samples)
    tokenizer = sentiment_tokenizer()
    texts = [f"{p} very{s}" for p, s in zip(PROMPTS, samples, strict=True)]
    expected = torch.stack([alone(folder, tokenizer(t).input_ids)[0] for t in texts])
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    assert len(set(made.tolist())) == 3


def test_a_chat_template_frames_prompt_and_answer(tmp_path: Path) -> None:
    folder = saved(tmp_path, QWEN2, template=TEMPLATE)
    judge = RewardModel(folder, batch_size=2, device="cpu")
    turns = json.dumps([{"role": "user", "content": "hot"}, {"role": "assistant", "content": " good"}])
    conditions, samples = [*PROMPTS, turns], [*SAMPLES, " cheap"]
    texts = [f"{p} very{s} <eos>" for p, s in zip(PROMPTS, SAMPLES, strict=True)] + ["hot very good <eos> cheap <eos>"]
    ids = [sentiment_tokenizer()(t, add_special_tokens=False).input_ids for t in texts]
    expected = torch.stack([alone(folder, row)[0] for row in ids])
    torch.testing.assert_close(judged(judge, conditions, samples), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="needs a chat template"):
        RewardModel(folder, chat_template=False, device="cpu").score([turns], [" hot"])


def test_one_of_several_outputs_is_read_as_log_odds(tmp_path: Path) -> None:
    folder = saved(tmp_path, QWEN2, outputs=3)
    made = judged(RewardModel(folder, label=1, device="cpu"), PROMPTS[:1], SAMPLES[:1])
    p = alone(folder, sentiment_tokenizer()(PROMPTS[0] + SAMPLES[0]).input_ids).double().softmax(0)[1]
    assert float(made) == pytest.approx(float(torch.log(p / (1 - p))), abs=1e-5)
    for label in (None, 3):
        with pytest.raises(ValueError, match="label must be 0 to 2 for the 3 outputs"):
            RewardModel(folder, label=label, device="cpu").score(PROMPTS, SAMPLES)


def test_a_long_row_keeps_its_end(tmp_path: Path) -> None:
    folder = saved(tmp_path, QWEN2)
    ids = sentiment_tokenizer()(PROMPTS[1] + SAMPLES[1]).input_ids
    made = judged(RewardModel(folder, max_length=4, device="cpu"), PROMPTS[1:2], SAMPLES[1:2])
    torch.testing.assert_close(made, alone(folder, ids[-4:]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"max_length": 0}, {"batch_size": 0}, {"dtype": "int8"}])
def test_bad_options_of_a_reward_model_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RewardModel("nowhere", **options)


def oracle(network: Any, prompt: str, sample: str) -> float:
    """Summed log-probability of sample and EOS, from the logits of one row."""
    tokenizer = sentiment_tokenizer()
    start = tokenizer(prompt, add_special_tokens=False).input_ids
    ids = [*start, *tokenizer(sample, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        logps = network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logps[i - 1, ids[i]] for i in range(len(start), len(ids))))


@pytest.mark.parametrize("lora", [True, False])
def test_implicit_reward_is_the_scaled_log_ratio(lora: bool, tmp_path: Path) -> None:
    sentiment_tokenizer().save_pretrained(tmp_path)
    builder = tiny_lm(lora=lora)
    reference = None if lora else tiny_lm(config=QWEN2 | {"hidden_act": "gelu"})
    judge = ImplicitReward(builder, str(tmp_path), reference, beta=0.3, batch_size=2, device="cpu")
    policy = judge.networks.policy
    for name, p in policy.named_parameters():
        p.requires_grad_(not lora or "lora_" in name)
    nudge(policy)
    base = reference() if reference is not None else tiny_lm()()
    expected = [0.3 * (oracle(policy, p, s) - oracle(base, p, s)) for p, s in zip(PROMPTS, SAMPLES, strict=True)]
    assert judged(judge, PROMPTS, SAMPLES).tolist() == pytest.approx(expected, abs=1e-5)
    judge.mean = True
    tokens = [2, 4, 2]
    means = [e / n for e, n in zip(expected, tokens, strict=True)]
    assert judged(judge, PROMPTS, SAMPLES).tolist() == pytest.approx(means, abs=1e-5)


def test_implicit_reward_needs_something_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a reference"):
        ImplicitReward(tiny_lm(), str(tmp_path)).score(PROMPTS, SAMPLES)
    with pytest.raises(ValueError, match="beta"):
        ImplicitReward(tiny_lm(lora=bool(LORA)), str(tmp_path), beta=0.0)
