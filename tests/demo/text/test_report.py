"""`DemoReport` under a Trainer: exact numbers, resume, and what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pl_prefopt.demo.plots import PANELS
from pl_prefopt.demo.text.data import SentimentDataModule
from pl_prefopt.demo.text.exact import data_enumeration, enumerate_policy, measure
from pl_prefopt.demo.text.report import LABELS, DemoReport, markdown
from pl_prefopt.demo.text.world import TOPICS, SentimentWorld
from pl_prefopt.modules import TextPreferenceModule
from tests.tiny import tiny_lm

WORLD = SentimentWorld(max_words=2)


def module() -> TextPreferenceModule:
    return TextPreferenceModule(policy=tiny_lm(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))


def fit(folder: Path, report: DemoReport, steps: int, **options: Any) -> TextPreferenceModule:
    torch.set_num_threads(1)
    made = module()
    data = SentimentDataModule(rows=64, eval_rows=8, batch_size=8, world=WORLD, cache_dir=str(folder / "cache"))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        callbacks=[report, ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename="{step}")],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(made, datamodule=data, **options)
    return made


def test_the_last_row_is_the_exact_measure_of_the_final_policy(tmp_path: Path) -> None:
    report = DemoReport(every_n_steps=2)
    made = fit(tmp_path, report, steps=5)
    assert [h["step"] for h in report.history] == [0, 2, 4, 5]
    tokenizer = SentimentDataModule(cache_dir=str(tmp_path)).builder(lambda: iter(()), "", tmp_path)
    before = enumerate_policy(module().policy_builder(), tokenizer, WORLD, tuple(TOPICS))
    after = enumerate_policy(made.policy, tokenizer, WORLD, tuple(TOPICS))
    expected = measure(WORLD, tuple(TOPICS), after, before)
    assert {k: report.history[-1][k] for k in expected} == pytest.approx(expected)
    assert report.history[-1]["kl"] > 1e-4


def test_a_resumed_run_measures_against_the_first_policy(tmp_path: Path) -> None:
    whole, rest = DemoReport(every_n_steps=2), DemoReport(every_n_steps=2)
    fit(tmp_path, whole, steps=4)
    fit(tmp_path, rest, steps=4, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert rest.history == whole.history


def test_equal_policies_give_equal_samples(tmp_path: Path) -> None:
    made = module()
    made.optimizer_factory = lambda p: torch.optim.SGD(p, lr=0.0)
    report = DemoReport(samples=3)
    data = SentimentDataModule(rows=16, eval_rows=8, batch_size=8, world=WORLD, cache_dir=str(tmp_path))
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, callbacks=[report], logger=False, default_root_dir=tmp_path,
                         enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0)  # fmt: skip
    trainer.fit(made, datamodule=data)
    rows = report.sample_rows(trainer, made)
    assert len(rows) == 3 * 10
    assert all(r["before"] == r["after"] and r["reward_before"] == r["reward_after"] for r in rows)
    assert len({r["before"] for r in rows}) > 5
    assert markdown(rows).count("\n") == 2 + len(rows)


def test_a_datamodule_without_a_world_is_refused_by_name() -> None:
    trainer: Any = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="NoneType has no `world`"):
        DemoReport().setup(trainer, module(), "fit")


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"also names entries of accuracy, ndcg, .*; got \['diversity'\]"):
        DemoReport(also=["diversity"])


def test_every_measure_has_a_label_and_a_curve() -> None:
    world = data_enumeration(WORLD, tuple(TOPICS))
    assert measure(WORLD, tuple(TOPICS), world, world).keys() <= LABELS.keys() == PANELS.keys()
