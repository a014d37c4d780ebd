"""What is exported loads in peft's and transformers' own loaders and gives the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pl_prefopt.callbacks import AdapterExport
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.datamodules.tokenizers import load_tokenizer
from pl_prefopt.modules import TextPreferenceModule
from tests.callbacks.test_reference_sync import Foreign, loader, trainer
from tests.runs import write_pairs
from tests.tiny import tiny_lm

IDS = torch.tensor([[3, 4, 5, 6]])


def data(folder: Path) -> TextPreferenceDataModule:
    return TextPreferenceDataModule(
        train=write_pairs(folder / "train.jsonl", 8),
        val=write_pairs(folder / "val.jsonl", 4),
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=4,
        cache_dir=str(folder / "cache"),
    )


@pytest.mark.parametrize("lora", [False, True])
def test_the_ecosystem_reads_it_back(lora: bool, tmp_path: Path) -> None:
    module = TextPreferenceModule(tiny_lm(lora=lora), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    rows = data(tmp_path)
    trainer(tmp_path, AdapterExport(str(tmp_path / "out")), max_epochs=1).fit(module, datamodule=rows)
    base: Any = tiny_lm()()
    loaded: Any
    if lora:
        loaded = PeftModel.from_pretrained(base, tmp_path / "out")
        assert (tmp_path / "out/adapter_model.safetensors").stat().st_size < 20_000
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    network: Any = module.policy.eval()
    with torch.no_grad():
        want = network(input_ids=IDS).logits
        torch.testing.assert_close(loaded.eval()(input_ids=IDS).logits, want, rtol=0, atol=1e-6)
        assert not torch.allclose(tiny_lm()().eval()(input_ids=IDS).logits, want)
    assert load_tokenizer(str(tmp_path / "out"))("ash bay").input_ids == rows.tokenizer("ash bay").input_ids
    card = (tmp_path / "out/README.md").read_text()
    assert '"class_path": "pl_prefopt.objectives' in card
    assert rows.datasets["train"].digest() in card
    assert '"val/accuracy"' in card


def test_an_export_stands_beside_every_checkpoint(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    export = AdapterExport(str(tmp_path / "out"), at_checkpoints=True)
    keep = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1, save_top_k=-1)
    run = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[export, keep], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(TextPreferenceModule(tiny_lm(lora=True)), datamodule=data(tmp_path))
    assert sorted(p.name for p in (tmp_path / "out").glob("step-*")) == ["step-1", "step-2"]


def test_a_foreign_module_exports_itself(tmp_path: Path) -> None:
    class Exporting(Foreign):
        def export(self, folder: Path) -> None:
            torch.save(self.policy.state_dict(), folder / "policy.pt")

    module = Exporting()
    trainer(tmp_path, AdapterExport(str(tmp_path / "out")), max_steps=1).fit(module, loader())
    saved = torch.load(tmp_path / "out/policy.pt", weights_only=True)
    assert torch.equal(saved["weight"], module.policy.weight)


def test_a_module_that_cannot_be_exported_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Linear has no save_pretrained; give Foreign a method export"):
        trainer(tmp_path, AdapterExport(), max_steps=1).fit(Foreign(), loader())
