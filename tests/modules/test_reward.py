"""Explicit rewards: the Bradley-Terry loss, the same body, padding, lists, and the judge that reads the export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pl_prefopt.callbacks import AdapterExport
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.judges import RewardModel
from pl_prefopt.modules import RewardModule
from pl_prefopt.objectives import TDPO, PlackettLuce, SimPO
from pl_prefopt.policies import RewardHead
from tests.runs import write_pairs
from tests.tiny import GPT2, LORA, QWEN2, collate, random_rows, tiny_lm

torch.set_num_threads(1)


def built(**options: Any) -> RewardModule:
    module = RewardModule(RewardHead(config=options.pop("config", QWEN2), **options.pop("head", {})), **options)
    module.configure_model()
    return module


@pytest.mark.parametrize("config", [QWEN2, GPT2], ids=["qwen2", "gpt2"])
def test_it_is_bradley_terry_on_the_outputs_of_the_classifier(config: dict[str, Any]) -> None:
    module, rows = built(config=config), random_rows(5, seed=3)
    scores = []
    for row in rows:
        for ids in row["completion_ids"]:
            output = module.policy(input_ids=torch.tensor([row["prompt_ids"] + ids])).logits
            assert output.shape == (1, 1)
            scores.append(output.item())
    pairs = torch.tensor(scores).view(5, 2)
    batch = collate(rows)
    torch.testing.assert_close(module.score(batch).logratios, pairs, atol=1e-5, rtol=1e-5)
    want = torch.tensor([math.log1p(math.exp(b - a)) for a, b in pairs.tolist()])
    torch.testing.assert_close(module.objective(module.score(batch)), want, atol=1e-5, rtol=1e-5)
    assert module.reference is None


@pytest.mark.parametrize(("left", "extra"), [(True, 0), (False, 5), (True, 3)])
def test_padding_changes_nothing(left: bool, extra: int) -> None:
    module, rows = built(), random_rows(4, seed=1, count=3)
    plain, padded = collate(rows), collate(rows, left=left, extra=extra)
    want = module.score(plain).logratios
    torch.testing.assert_close(module.score(padded).logratios, want, atol=1e-5, rtol=1e-5)


def test_the_body_is_that_of_the_language_model(tmp_path: Path) -> None:
    language: Any = tiny_lm(seed=5)()
    language.save_pretrained(tmp_path)
    first, second = (RewardHead(pretrained=str(tmp_path), seed=0)() for _ in range(2))
    body = language.base_model.state_dict()
    assert body.keys() == first.base_model.state_dict().keys()  # pyright: ignore
    assert all(torch.equal(v, body[k]) for k, v in first.base_model.state_dict().items())  # pyright: ignore
    assert torch.equal(first.score.weight, second.score.weight)  # pyright: ignore
    other: Any = RewardHead(pretrained=str(tmp_path), seed=1)()
    assert not torch.equal(first.score.weight, other.score.weight)  # pyright: ignore


def test_lists_and_adapters() -> None:
    module, batch = built(objective=PlackettLuce(1.0), head={"lora": LORA}), collate(random_rows(3, count=4))
    batch["relevance"] = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(3, 4)
    batch["list_mask"] = torch.arange(4) < torch.tensor([[4], [2], [3]])
    batch["completion_mask"] &= batch["list_mask"][..., None]
    module.objective(module.score(batch)).mean().backward()
    trained = {n for n, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any("score" in n for n in trained)
    assert any("lora_B" in n for n in trained)
    assert module.pair_hidden_states(batch)[0].shape == (3, 1, QWEN2["hidden_size"])


def test_what_it_learns_is_read_by_the_judge(tmp_path: Path) -> None:
    data = TextPreferenceDataModule(
        train=write_pairs(tmp_path / "train.jsonl", 64), val=write_pairs(tmp_path / "val.jsonl", 12), eos="keep",
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"), batch_size=16, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    module = RewardModule(RewardHead(config=QWEN2), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=6, logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        callbacks=[AdapterExport(str(tmp_path / "export"))], enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.9
    rows = [data.texts("val", i) for i in range(12)]
    batch = data.collate([data.datasets["val"][i] for i in range(12)])  # pyright: ignore
    with torch.no_grad():
        own = module.eval().score(batch).logratios
    judge = RewardModel(str(tmp_path / "export"), device="cpu")
    for side in range(2):
        given = judge.score([r["prompt"] for r in rows], [r["completions"][side] for r in rows])
        torch.testing.assert_close(given, own[:, side], atol=1e-4, rtol=1e-4)


def test_refused() -> None:
    with pytest.raises(ValueError, match="objective TDPO needs kl, which RewardModule cannot give"):
        RewardModule(RewardHead(config=QWEN2), objective=TDPO())
    with pytest.raises(ValueError, match="objective SimPO needs lengths, logps, which RewardModule"):
        RewardModule(RewardHead(config=QWEN2), objective=SimPO())
    module = RewardModule(tiny_lm())
    module.configure_model()
    with pytest.raises(ValueError, match="Qwen2ForCausalLM has no layer `score`: use policy: RewardHead"):
        module.score(collate(random_rows(2)))
