"""Rows: label rates, flips, length bias, similarity, splits, lists, determinism."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pl_prefopt.demo.text.data import SentimentDataModule
from pl_prefopt.demo.text.pairs import Recipe, draw_rows, neighbours, preference_prob, write_splits
from pl_prefopt.demo.text.world import TOPICS, UNSEEN_TOPICS, SentimentWorld

WORLD = SentimentWorld(max_words=3)
COUNT = 3000


def rows(count: int = COUNT, seed: int = 0, **options: Any) -> list[dict[str, Any]]:
    recipe = Recipe(**options)
    return list(draw_rows(WORLD, tuple(TOPICS), recipe, count, held=False, rng=np.random.default_rng(seed)))


def gap(row: dict[str, Any]) -> float:
    return row["chosen_reward"] - row["rejected_reward"]


def words(row: dict[str, Any]) -> int:
    return len(row["chosen"].split()) - len(row["rejected"].split())


def check_rate(drawn: np.ndarray, p: np.ndarray) -> None:
    """Mean of Bernoulli draws against their probabilities, within four standard errors."""
    error = np.sqrt((p * (1 - p)).sum()) / len(p)
    assert abs(drawn.mean() - p.mean()) < 4 * error


def test_a_list_longer_than_there_are_rewards_is_refused() -> None:
    with pytest.raises(ValueError, match=r"list_size is 60, but about 'battery' only \d+ continuations of different"):
        rows(1, list_size=60, temperature=0.0)


@pytest.mark.parametrize("options", [{"temperature": 2.0}, {"temperature": 0.5}, {"flip": 0.3}, {"length_bias": 0.8}])
def test_labels_follow_bradley_terry_with_bias_and_flips(options: dict[str, Any]) -> None:
    drawn = rows(**options)
    r, n = np.array([gap(x) for x in drawn]), np.array([words(x) for x in drawn])
    temperature, flip, bias = (
        options.get(k, d) for k, d in (("temperature", 1.0), ("flip", 0.0), ("length_bias", 0.0))
    )
    up, total = (r > 0), np.abs(r)
    total += bias * np.where(up, n, -n)
    p = 1 / (1 + np.exp(-total / temperature))
    p = np.where(r == 0, 0.5, (1 - flip) * p + flip * (1 - p))
    check_rate(up[r != 0], p[r != 0])
    assert p[r != 0].std() > 0.05


def test_length_bias_makes_chosen_longer() -> None:
    assert abs(np.mean([words(x) for x in rows()])) < 0.1
    assert np.mean([words(x) for x in rows(length_bias=0.8)]) > 0.2


@pytest.mark.parametrize("flip", [0.0, 0.2, 1.0])
def test_flip_rate_without_other_noise(flip: float) -> None:
    wrong = np.mean([gap(x) < 0 for x in rows(temperature=0.0, flip=flip)])
    assert wrong == pytest.approx(flip, abs=4 * np.sqrt(flip * (1 - flip) / COUNT))


def test_preference_prob_by_hand() -> None:
    assert preference_prob(Recipe(temperature=2.0), 1.0, 0) == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert preference_prob(Recipe(flip=0.2, temperature=0.0), 0.1, 0) == pytest.approx(0.8)
    assert preference_prob(Recipe(length_bias=0.5), -1.0, 2) == pytest.approx(0.5)


def test_soft_labels_are_the_true_probability() -> None:
    drawn = rows(soft_labels=True, flip=0.1, length_bias=0.3)
    p = np.array([x["preference_prob"] for x in drawn])
    up = np.array([(x["chosen"], x["rejected"]) == tuple(sorted((x["chosen"], x["rejected"]))) for x in drawn])
    check_rate(up, np.where(up, p, 1 - p))


@pytest.mark.parametrize("similarity", [0.0, 0.5, 1.0])
def test_similarity_is_the_share_of_pairs_that_differ_in_one_word(similarity: float) -> None:
    def close(row: dict[str, Any]) -> bool:
        a, b = row["chosen"].split(), row["rejected"].split()
        return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1

    base = np.mean([close(x) for x in rows()])
    share = np.mean([close(x) for x in rows(similarity=similarity)])
    assert share == pytest.approx(similarity + (1 - similarity) * base, abs=0.04)


def test_neighbours_by_brute_force() -> None:
    index = WORLD.index(" not good")
    texts = {WORLD.text(i) for i in neighbours(WORLD, index)}
    pairs = (WORLD.text(i).split() for i in range(len(WORLD)) if WORLD.lengths[i] == 2)
    assert texts == {f" {a} {b}" for a, b in pairs if (a != "not") + (b != "good") == 1}


def test_splits_share_no_continuation_and_evaluation_is_labelled_by_the_reward(tmp_path: Path) -> None:
    write_splits(tmp_path, WORLD, Recipe(rows=600, eval_rows=200, flip=0.4, length_bias=1.0), seed=3)
    splits = {p.stem: [json.loads(line) for line in p.open()] for p in tmp_path.glob("*.jsonl")}
    assert set(splits) == {"train", "val", "test_continuations", "test_topics"}
    seen = {r[k] for r in splits["train"] for k in ("chosen", "rejected")}
    for name, found in splits.items():
        if name == "train":
            continue
        assert not seen & {r[k] for r in found for k in ("chosen", "rejected")}
        assert all(gap(r) > 0 for r in found)
    about = {name: {r["prompt"] for r in found} for name, found in splits.items()}
    assert about["train"] == about["val"] == {WORLD.prompt(t) for t in TOPICS}
    assert about["test_topics"] == {WORLD.prompt(t) for t in UNSEEN_TOPICS}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> list[bytes]:
        (tmp_path / name).mkdir()
        write_splits(tmp_path / name, WORLD, Recipe(rows=50, eval_rows=20), seed)
        return [p.read_bytes() for p in sorted((tmp_path / name).iterdir())]

    first = written("a", 0)
    assert first == written("b", 0)
    assert all(x != y for x, y in zip(first, written("c", 1), strict=True))


def test_lists_are_best_first_with_grades_of_the_reward() -> None:
    clean = rows(50, list_size=5, temperature=0.0)
    for row in clean:
        topic = row["prompt"].split()[-1][:-1]
        rewards = [WORLD.rewards(topic)[WORLD.index(c)] for c in row["completions"]]
        assert rewards == sorted(rewards, reverse=True)
        assert row["relevance"] == [min(int((r + 3) / 6 * 5), 4) for r in rewards]
    turned = rows(50, list_size=5, temperature=0.0, flip=1.0)
    assert [r["completions"] for r in turned] == [c["completions"][::-1] for c in clean]


def test_margins_and_weights_use_the_named_objectives() -> None:
    row = rows(1, margins=("brevity", "restraint"), weights={"brevity": 1.0}, temperature=0.0)[0]
    index = WORLD.index(row["chosen"])
    assert row["chosen_margins"] == [WORLD.rewards("battery", o)[index] for o in ("brevity", "restraint")]
    assert row["chosen_reward"] == WORLD.rewards("battery", "brevity")[index]
    assert words(row) < 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"flip": 1.5}, "flip"),
        ({"temperature": -1.0}, "temperature"),
        ({"list_size": 1}, "list_size"),
        ({"list_size": 4, "similarity": 0.5}, "similarity"),
        ({"weights": {"kindness": 1.0}}, "kindness"),
        ({"rows": 0}, "rows"),
    ],
)
def test_refusals_name_the_argument(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Recipe(**options)


@pytest.mark.parametrize(
    "options", [{}, {"labels": False}, {"list_size": 4}, {"soft_labels": True}, {"margins": ["brevity"]}]
)
def test_datamodule_reads_its_own_files(tmp_path: Path, options: dict[str, Any]) -> None:
    data = SentimentDataModule(rows=24, eval_rows=10, batch_size=8, cache_dir=str(tmp_path), world=WORLD, **options)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["completion_ids"].shape[:2] == (8, options.get("list_size", 2))
    assert ("relevance" in batch, "preference_prob" in batch, "margins" in batch) == (
        "list_size" in options, "soft_labels" in options, "margins" in options
    )  # fmt: skip
    line = json.loads((data.folder / "train.jsonl").read_text().splitlines()[int(batch["index"][0])])
    ids = batch["completion_ids"][0, 0][batch["completion_mask"][0, 0]]
    assert data.tokenizer.decode(ids) == (line.get("chosen") or line["completions"][0]) + "<eos>"
    assert data.tokenizer.decode(batch["prompt_ids"][0]) == line["prompt"]
    assert data.tokenizer.get_vocab()["<unk>"] not in batch["completion_ids"]
