"""CHES filtering: the right rows, on disk once, the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from pl_prefopt.callbacks import CHESFilter
from pl_prefopt.cli import main
from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.metrics.functional import ches_score
from pl_prefopt.modules import TextPreferenceModule
from tests.callbacks.test_reference_sync import trainer
from tests.cli.test_main import config
from tests.runs import ROOT, write_pairs
from tests.tiny import tiny_lm

WANTED = (
    r"CHESFilter requires Bare\.pair_hidden_states\(batch\) -> \(chosen \(B, T, D\), mask, rejected, mask\), "
    "which is not defined"
)


class Vectors(pl.LightningDataModule):
    """A foreign datamodule: pairs of short sequences of vectors; row i is the more similar the larger i is."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        base = torch.randn(12, 3, 4, generator=g)
        base = base / base.mean(1, keepdim=True).norm(dim=-1, keepdim=True)
        mix = torch.linspace(0, 1, 12)[:, None, None]
        self.datasets = {"train": list(zip(base, mix * base - (1 - mix) * base, strict=True))}

    def collate(self, rows: list[Any]) -> list[torch.Tensor]:
        return [torch.stack(x) for x in zip(*rows, strict=True)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.datasets["train"], batch_size=2, collate_fn=self.collate)  # type: ignore[arg-type]


class Foreign(pl.LightningModule):
    """Somebody's own module with features of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Linear(4, 4, bias=False)
        torch.nn.init.eye_(self.policy.weight)
        self.rows = 0

    def pair_hidden_states(self, batch: Any) -> tuple[torch.Tensor, ...]:
        chosen, rejected = (self.policy(x) for x in batch)
        mask = torch.ones(chosen.shape[:2], dtype=torch.bool)
        return chosen, mask, rejected, mask

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.rows += len(batch[0])
        return self.policy(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_foreign_module_trains_on_the_least_similar_pairs(tmp_path: Path) -> None:
    data, module = Vectors(), Foreign()
    trainer(tmp_path, CHESFilter(fraction=0.5, path=str(tmp_path / "ches")), max_epochs=1).fit(module, datamodule=data)
    assert module.rows == 6
    kept = data.datasets["train"]
    assert sorted(kept.indices) == [0, 1, 2, 3, 4, 5]  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "ches/summary.json").read_text())["dropped"] == 6
    assert (tmp_path / "ches/histogram.png").stat().st_size > 1000


def text_data(folder: Path) -> TextPreferenceDataModule:
    return TextPreferenceDataModule(
        train=write_pairs(folder / "train.jsonl", 24),
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=4,
        cache_dir=str(folder / "cache"),
    )


@pytest.mark.parametrize(("keep", "count"), [({"fraction": 0.25}, 6), ({"rank": 5}, 5), ({"threshold": 1e9}, 24)])
def test_scores_on_disk_are_those_of_the_definition(keep: dict[str, Any], count: int, tmp_path: Path) -> None:
    data, module = text_data(tmp_path), TextPreferenceModule(tiny_lm())
    run = trainer(tmp_path, CHESFilter(**keep, path=str(tmp_path / "ches")), max_steps=1)
    run.fit(module, datamodule=data)
    assert len(data.datasets["train"]) == count
    scores = torch.tensor(pq.read_table(tmp_path / "ches/scores.parquet")["ches"].to_pylist())
    fresh, whole = TextPreferenceModule(tiny_lm()), text_data(tmp_path)
    fresh.configure_model()
    whole.setup("fit")
    rows = whole.datasets["train"]
    batch = whole.collate([rows[i] for i in range(len(rows))])  # pyright: ignore[reportOptionalCall]
    want = ches_score(*fresh.eval().pair_hidden_states(batch))
    torch.testing.assert_close(scores, want.detach(), rtol=1e-4, atol=1e-4)
    lowest = want.argsort()[:count].sort().values.tolist()
    assert [data.datasets["train"].source_row(i) for i in range(count)] == lowest
    assert "most similar" in (tmp_path / "ches/report.md").read_text()


def test_no_output_layer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, module = text_data(tmp_path), TextPreferenceModule(tiny_lm())
    seen: list[int] = []
    original = CHESFilter._score_rows

    def watched(self: CHESFilter, trainer: Any, module: Any, *rest: Any) -> Any:
        handle = module.policy.lm_head.register_forward_hook(lambda *_: seen.append(1))
        result = original(self, trainer, module, *rest)
        handle.remove()
        return result

    monkeypatch.setattr(CHESFilter, "_score_rows", watched)
    trainer(tmp_path, CHESFilter(rank=8, path=str(tmp_path / "c")), max_steps=1).fit(module, datamodule=data)
    assert seen == []


def test_finished_parts_are_not_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "ches")
    trainer(tmp_path, CHESFilter(rank=8, path=path), max_steps=1).fit(
        TextPreferenceModule(tiny_lm()), datamodule=text_data(tmp_path)
    )

    def never(*_: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(CHESFilter, "_score_rows", never)
    trainer(tmp_path, CHESFilter(rank=8, path=path), max_steps=1).fit(
        TextPreferenceModule(tiny_lm()), datamodule=text_data(tmp_path)
    )
    with pytest.raises(AssertionError, match="scored again"):
        trainer(tmp_path, CHESFilter(rank=8, path=path), max_steps=1).fit(
            TextPreferenceModule(tiny_lm(seed=4)), datamodule=text_data(tmp_path)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"fraction": 0.5, "rank": 3}, "exactly one of"),
        ({"fraction": 0.0}, r"\(0, 1\]"),
        ({"fraction": 1.5}, r"\(0, 1\]"),
        ({"rank": 0}, "rank must be an integer >= 1 or None, got 0"),
        ({"rank": 1, "batch_size": 0}, "batch_size"),
        ({"rank": 1, "part": 0}, "part"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CHESFilter(**options)


def test_a_filter_that_keeps_nothing_says_what_the_scores_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keeps none of 12 pairs; scores lie between"):
        trainer(tmp_path, CHESFilter(threshold=-1e9, path=str(tmp_path)), max_steps=1).fit(
            Foreign(), datamodule=Vectors()
        )


def test_scores_that_are_not_finite_are_told_by_row(tmp_path: Path) -> None:
    data = Vectors()
    data.datasets["train"][7][0][:] = float("inf")
    with pytest.raises(ValueError, match=r"must be finite, got 1 training pairs with another one \(rows \[7\]\)"):
        trainer(tmp_path, CHESFilter(rank=4, path=str(tmp_path)), max_steps=1).fit(Foreign(), datamodule=data)


def test_what_a_module_or_datamodule_lacks_is_named(tmp_path: Path) -> None:
    class Bare(Foreign):
        pair_hidden_states = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match=WANTED):
        trainer(tmp_path, CHESFilter(rank=1), max_steps=1).fit(Bare(), datamodule=Vectors())
    with pytest.raises(ValueError, match=r"datasets\['train'\] \(random access\)"):
        trainer(tmp_path, CHESFilter(rank=1), max_steps=1).fit(Foreign(), Vectors().train_dataloader())


def test_streamed_rows_cannot_be_chosen_from(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter([])

    foreign = Vectors()
    foreign.datasets = {"train": Stream()}  # type: ignore[dict-item]
    ours = TextPreferenceDataModule(
        train=write_pairs(tmp_path / "train.jsonl", 8), tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        streaming=True, batch_size=4, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    for module, data in ((Foreign(), foreign), (TextPreferenceModule(tiny_lm()), ours)):
        with pytest.raises(ValueError, match=r"random access\) and collate\(rows\), got \w+ with train"):
            trainer(tmp_path, CHESFilter(rank=1), max_steps=1).fit(module, datamodule=data)


def test_rows_other_than_those_of_the_checkpoint_are_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path, CHESFilter(rank=4, path=str(tmp_path)), max_epochs=1)
    first.fit(Foreign(), datamodule=Vectors())
    first.save_checkpoint(tmp_path / "a.ckpt")
    fewer = Vectors()
    fewer.datasets["train"] = fewer.datasets["train"][:9]
    again = trainer(tmp_path, CHESFilter(rank=4, path=str(tmp_path)), max_epochs=2)
    with pytest.raises(ValueError, match="training rows must be those of the checkpoint, 12, got 9"):
        again.fit(Foreign(), datamodule=fewer, ckpt_path=tmp_path / "a.ckpt", weights_only=True)


def test_a_second_fit_of_the_same_objects_trains_on_the_same_rows(tmp_path: Path) -> None:
    data, filtered = Vectors(), CHESFilter(rank=4, path=str(tmp_path))
    for _ in range(2):
        module = Foreign()
        trainer(tmp_path, filtered, max_epochs=1).fit(module, datamodule=data)
        assert module.rows == 4


def test_the_command_line_scores_without_training(tmp_path: Path) -> None:
    values = config(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    overlay = str(ROOT / "configs/callbacks/ches-score.yaml")
    cli = main(["fit", "--config", str(tmp_path / "mine.yaml"), "--config", overlay])
    assert cli.trainer.global_step == 0
    found = list(tmp_path.rglob("ches/scores.parquet"))
    assert len(found) == 1
    assert pq.read_table(found[0]).num_rows == 12
