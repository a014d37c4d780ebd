from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from pl_prefopt.datamodules import Share, TextPreferenceDataModule, TrainedTokenizer, Truncation
from pl_prefopt.datamodules.files.arrow import ParquetStream
from pl_prefopt.datamodules.loading.stream import StreamLoader
from tests.datamodules.sample_files import word_pairs, write_jsonl

N = 23


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", word_pairs(N))


def module(path: Path, **options: Any) -> TextPreferenceDataModule:
    given: dict[str, Any] = {
        "tokenizer": TrainedTokenizer(kind="word"), "batch_size": 2, "streaming": True, "shuffle_buffer": 5,
        "cache_dir": str(path.parent / "cache"),
    }  # fmt: skip
    return TextPreferenceDataModule(str(path), **(given | options))


def stream(path: Path, share: Share | None = None, accumulate: int = 1, **options: Any) -> StreamLoader:
    data = module(path, **options)
    data.setup("fit")
    loader = data.make_train_loader()
    assert isinstance(loader, StreamLoader)
    loader.blocks.share, loader.accumulate = share or Share(), accumulate
    return loader


def seen(batches: Any) -> list[list[int]]:
    return [b["index"].tolist() for b in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def test_each_row_once_shuffled_and_whole_batches(path: Path) -> None:
    loader = stream(path)
    first = seen(loader)
    rows = flat(first)
    assert len(first) == 11
    assert len(set(rows)) == 22
    assert rows != sorted(rows)
    assert loader.counts == {"read": N}
    loader.set_epoch(1)
    assert seen(loader) != first


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_change_the_order(path: Path, workers: int) -> None:
    assert seen(stream(path, num_workers=workers)) == seen(stream(path))


def test_two_ranks_see_the_rows_of_one(path: Path) -> None:
    one = seen(stream(path, batch_size=4))
    two = [seen(stream(path, Share(r, 2))) for r in (0, 1)]
    assert len(one) == len(two[0]) == len(two[1]) == 5
    assert [sorted(w) for w in one] == [sorted(a + b) for a, b in zip(*two, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 4, 5])
def test_a_position_is_exact(path: Path, done: int, accumulate: int, workers: int) -> None:
    whole = seen(stream(path, accumulate=accumulate))
    assert len(whole) == 11 // accumulate * accumulate
    first = stream(path, accumulate=accumulate)
    batches = iter(first)
    head = seen(next(batches) for _ in range(done))
    second = stream(path, accumulate=accumulate, num_workers=workers)
    second.load_state_dict(first.state_dict())
    assert head + seen(second) == whole


def test_a_position_of_other_settings_is_refused(path: Path) -> None:
    first = stream(path)
    next(iter(first))
    with pytest.raises(ValueError, match=r"seed 0.* but this run has .*seed 1"):
        stream(path, seed=1).load_state_dict(first.state_dict())


def test_dropped_rows_are_counted_and_bad_ones_are_named(tmp_path: Path) -> None:
    rows = word_pairs(N)
    rows[7]["chosen"] = "  "
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match=r"bad.jsonl, line 8: field 'chosen'"):
        seen(stream(path))
    loader = stream(path, on_bad_row="drop")
    assert 7 not in flat(seen(loader))
    assert loader.counts["dropped/empty_completion"] == 1


def test_limit_and_hub_streams(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(flat(seen(stream(path, limit=10)))) == set(range(10))
    import datasets

    def remote(name: str, split: str, streaming: bool) -> Any:
        assert (name, split, streaming) == ("somebody/pairs", "train", True)
        return datasets.IterableDataset.from_generator(_rows, gen_kwargs={"path": str(path)})

    tokenizer: Any = module(path).tokenizer
    folder = str(path.parent / "tokenizer")
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr(datasets, "load_dataset", remote)
    data = TextPreferenceDataModule("somebody/pairs", tokenizer=folder, batch_size=2, streaming=True, shuffle_buffer=5)
    data.setup("fit")
    loader = data.train_dataloader()
    whole = seen(loader)
    assert len(whole) == 11
    batches = iter(loader)
    head = seen(next(batches) for _ in range(4))
    again = data.train_dataloader()
    again.load_state_dict(loader.state_dict())
    assert head + seen(again) == whole


def _rows(path: str) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, Path(path).read_text().splitlines())


class Stop(Exception):
    pass


class Recorder(L.LightningModule):
    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.stop, self.rows = stop, []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if len(self.rows) == self.stop:
            raise Stop
        self.rows.append(batch["index"].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("limit", [1.0, 8])
@pytest.mark.parametrize("stop", [5, 14])
def test_lightning_resumes_a_stream_that_it_reads_ahead(path: Path, tmp_path: Path, stop: int, limit: float) -> None:
    def fit(recorder: Recorder, folder: str, resume: str | None = None) -> list[list[int]]:
        keep = ModelCheckpoint(tmp_path / folder, save_top_k=-1, every_n_train_steps=1, filename="{step}")
        trainer = L.Trainer(
            max_steps=20, accelerator="cpu", callbacks=[keep], logger=False, limit_train_batches=limit,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(recorder, datamodule=module(path), ckpt_path=resume, weights_only=False if resume else None)
        return recorder.rows

    whole = fit(Recorder(), "whole")
    assert len(whole) == 20
    cut = Recorder(stop)
    with pytest.raises(Stop):
        fit(cut, "cut")
    assert cut.rows + fit(Recorder(), "rest", str(tmp_path / "cut" / f"step={stop}.ckpt")) == whole


@pytest.mark.parametrize("world", [2, 3])
def test_each_rank_tokenises_its_own_share_only(path: Path, world: int) -> None:
    loaders = [stream(path, Share(r, world), batch_size=1) for r in range(world)]
    batches = [seen(loader) for loader in loaders]
    assert {len(b) for b in batches} == {N // world}
    assert sum(loader.counts["read"] for loader in loaders) == N
    rows = flat([row for part in batches for row in part])
    assert len(set(rows)) == len(rows) == N // world * world


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("bad", [[7], [0, 1, 2, 3, 4], list(range(3, N))])
def test_ranks_stop_together_whatever_is_dropped(tmp_path: Path, world: int, bad: list[int]) -> None:
    rows = word_pairs(N)
    for i in bad:
        rows[i]["chosen"] = "  "
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    loaders = [stream(path, Share(r, world), batch_size=1, on_bad_row="drop") for r in range(world)]
    batches = [seen(loader) for loader in loaders]
    assert {len(b) for b in batches} == {N // world}
    assert not set(flat([row for part in batches for row in part])) & set(bad)
    counts = sum((loader.counts for loader in loaders), Counter[str]())
    assert counts["dropped/empty_completion"] == counts["repeated"] == len(bad)
    again = stream(path, Share(world - 1, world), batch_size=1, on_bad_row="drop")
    again.load_state_dict(loaders[0].state_dict() | {"batches": 3})
    assert seen(again) == batches[-1][3:]


def test_a_stream_of_bad_rows_only_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "bad.jsonl", word_pairs(3))
    with pytest.raises(ValueError, match=r"bad.jsonl must hold a row that can be used, got none"):
        seen(stream(path, truncation=Truncation(3, prompt="drop")))


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_is_streamed_in_place(path: Path, workers: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = path.with_suffix(".parquet")
    parquet.write_table(pa.Table.from_pylist(word_pairs(N)), table, row_group_size=4)
    loader = stream(table, num_workers=workers)
    assert isinstance(loader.blocks.source, ParquetStream)
    assert seen(loader) == seen(stream(path))
