"""Draws from sources: proportions, repeatability, ranks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer
from pl_prefopt.datamodules.loading.batches import Share
from pl_prefopt.datamodules.loading.mixed import SourceBatches
from pl_prefopt.mixtures.sources import SourceSampler, SourceSchedule
from tests.runs import write_pairs

SOURCES = {"a": list(range(30)), "b": list(range(30, 40)), "c": list(range(40, 100))}


def origin(rows: np.ndarray) -> np.ndarray:
    return np.searchsorted([30, 40, 100], rows, side="right")


def test_every_draw_has_the_proportions_of_the_weights() -> None:
    schedule = SourceSchedule(SOURCES, 10, weights={"a": 0.5, "b": 0.25, "c": 0.25})
    counts = np.array([np.bincount(origin(schedule.rows(t)), minlength=3) for t in range(200)])
    assert set(counts[:, 0]) == {5}
    assert set(counts[:, 1]) <= {2, 3}
    assert counts.mean(0) == pytest.approx([5, 2.5, 2.5], abs=0.1)


def test_all_rows_of_a_source_come_before_any_comes_again() -> None:
    schedule = SourceSchedule(SOURCES, 10)
    assert schedule.weights == pytest.approx([0.3, 0.1, 0.6])
    drawn = np.concatenate([schedule.rows(t) for t in range(20)])
    for rows in SOURCES.values():
        own = [r for r in drawn.tolist() if r in rows]
        assert sorted(own[: len(rows)]) == rows
        assert own[: len(rows)] != rows


def test_draws_can_be_repeated_in_any_order_after_weights_changed() -> None:
    first = SourceSchedule(SOURCES, 10, seed=3)
    seen = {}
    for t in range(12):
        if t == 5:
            first.set_weights({"a": 1, "b": 0, "c": 1})
        seen[t] = first.rows(t)
    again = SourceSchedule(SOURCES, 10, seed=3)
    again.load_state_dict(first.state_dict())
    for t in (11, 2, 5, 4):
        assert np.array_equal(again.rows(t), seen[t])
    assert not any((origin(seen[t]) == 1).any() for t in range(5, 12))


def test_two_ranks_share_the_draws_of_one() -> None:
    sources = {k: np.asarray(v) for k, v in SOURCES.items()}
    one = list(SourceBatches(sources, 4, Share(), accumulate=2).batches(1))
    ranks = [list(SourceBatches(sources, 2, Share(r, 2), accumulate=2).batches(1)) for r in range(2)]
    assert len(one) == 24 == len(SourceBatches(sources, 4, Share(), accumulate=2))
    for whole, a, b in zip(one, *ranks, strict=True):
        assert sorted(whole) == sorted([*a, *b])


def test_the_sampler_has_the_length_it_says() -> None:
    sampler = SourceSampler(SOURCES, block=8)
    assert len(list(sampler)) == len(sampler) == 96
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_the_text_data_module_keeps_its_sources_apart(tmp_path: Path) -> None:
    files = {n: write_pairs(tmp_path / f"{n}.jsonl", 8 + i) for i, n in enumerate("xyz")}
    data = TextPreferenceDataModule(
        train={"x": files["x"], "yz": [files["y"], files["z"]]},
        val=0.2,
        tokenizer=TrainedTokenizer(vocab_size=60, kind="word"),
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup("fit")
    rows, sources = data.datasets["train"], data.sources()
    assert sorted(np.concatenate(list(sources.values()))) == list(range(len(rows)))
    assert all(rows.source_row(int(i)) < 8 for i in sources["x"])
    assert all(rows.source_row(int(i)) >= 8 for i in sources["yz"])
    assert sum(len(b["index"]) for b in data.train_dataloader()) == 20


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ({"a": [1], "b": []}, None, "empty: .'b'"),
        ({"a": [1]}, None, "at least two"),
        ({"a": [1], "b": [2]}, {"a": 1.0}, "every source"),
        ({"a": [1], "b": [2]}, {"a": -1.0, "b": 1.0}, ">= 0"),
        ({"a": [1], "b": [2]}, {"a": 0.0, "b": 0.0}, "not all 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    sources: dict[str, list[int]], weights: dict[str, float] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        SourceSchedule(sources, 4, weights=weights)
    with pytest.raises(ValueError, match="at least two named sources"):
        TextPreferenceDataModule(train={"x": str(tmp_path)})
