"""What rounds of sampling ask of a data module: prompts, truths, written pairs, other training rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pl_prefopt.datamodules import TextPreferenceDataModule, TrainedTokenizer

ROWS = [
    {"prompt": "the cat", "chosen": " sat down", "rejected": " ran"},
    {"prompt": "a dog", "chosen": " ran", "rejected": " sat"},
    {"prompt": "the cat", "chosen": " slept", "rejected": " ran"},
]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def made(folder: Path, rows: list[dict[str, Any]], **options: Any) -> TextPreferenceDataModule:
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = {"tokenizer": TrainedTokenizer(vocab_size=80, kind="word"), "batch_size": 1} | options
    data = TextPreferenceDataModule(train=str(file), cache_dir=str(folder / "cache"), **options)
    data.setup("fit")
    return data


def test_prompts_are_listed_once_with_their_first_truth(tmp_path: Path) -> None:
    data = made(tmp_path, ROWS)
    assert data.conditions() == ["the cat", "a dog"]
    assert data.truths(["a dog", "the cat"]) == [" ran", " sat down"]
    for i, row in enumerate(ROWS):
        assert data.prompt_ids(row["prompt"]) == data.datasets["train"][i]["prompt_ids"]
    assert data.prompt_ids("sat cat") == data.tokenizer("sat cat").input_ids


def test_written_pairs_take_the_place_of_the_rows(tmp_path: Path) -> None:
    data = made(tmp_path, ROWS, limit=3)
    assert data.write_samples(tmp_path, "x", [" a", " b"]) == [" a", " b"]
    pairs = [{"condition": "a dog", "chosen": " sat", "rejected": " ran", "score_chosen": 0.5}] * 5
    path = data.write_pairs(tmp_path / "out", "round-001/pairs", pairs)
    assert Path(path) == tmp_path / "out/round-001/pairs.jsonl"
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert lines == [{"prompt": "a dog", "chosen": " sat", "rejected": " ran", "score_chosen": 0.5}] * 5
    asked: list[str | None] = [None, path, path]
    data.provide_train(lambda: asked.pop(0))
    loaders: list[Any] = [data.train_dataloader() for _ in range(3)]
    assert [len(loader) for loader in loaders] == [3, 5, 5]
    assert data.texts("train", 4)["completions"] == [" sat", " ran"]
    assert data.conditions() == ["the cat", "a dog"]
    assert data.truths(["the cat"]) == [" sat down"]
    resumed = made(tmp_path, ROWS)
    resumed.replace_train(path)
    assert resumed.conditions() == ["the cat", "a dog"], "what was given, though nobody asked before"


def test_renamed_columns_are_those_of_the_given_file_only(tmp_path: Path) -> None:
    rows = [{"q": "the cat", "good": " sat", "bad": " ran"}]
    data = made(tmp_path, rows, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    pair = {"condition": data.conditions()[0], "chosen": " ran", "rejected": " sat"}
    data.replace_train(data.write_pairs(tmp_path, "pairs", [pair]))
    assert data.texts("train", 0) == {"prompt": "the cat", "completions": [" ran", " sat"]}


def test_a_conversation_stays_one(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "the cat"}]
    answers = {k: [{"role": "assistant", "content": v}] for k, v in (("chosen", "sat"), ("rejected", "ran"))}
    row = {"prompt": turns, **answers, "chat_template_kwargs": {"x": 1}}
    data = made(tmp_path, [row, {"prompt": turns, **answers}], chat_template=TEMPLATE)
    first, second = data.conditions()
    assert json.loads(first) == {"prompt": turns, "chat_template_kwargs": {"x": 1}}
    assert json.loads(second) == turns
    assert data.truths([first]) == ["sat"]
    before = data.datasets["train"][0]
    data.replace_train(data.write_pairs(tmp_path, "pairs", [{"condition": first, "chosen": "sat", "rejected": "ran"}]))
    assert data.datasets["train"][0] == before


def test_rows_that_cannot_be_sampled_for_are_refused(tmp_path: Path) -> None:
    data = made(tmp_path, [{"chosen": "the cat sat", "rejected": "the cat ran"}])
    with pytest.raises(ValueError, match="row 0 must have a prompt column"):
        data.conditions()
    stream = made(tmp_path, ROWS, streaming=True)
    with pytest.raises(ValueError, match="streaming must be false"):
        stream.conditions()


def test_held_out_rows_stay_those_of_the_given_file(tmp_path: Path) -> None:
    data = made(tmp_path, ROWS, val=0.4)
    before = data.texts("val", 0)
    pair = {"condition": data.conditions()[0], "chosen": " ran", "rejected": " sat"}
    data.replace_train(data.write_pairs(tmp_path, "pairs", [pair]))
    assert data.texts("val", 0) == before
    assert data.texts("train", 0)["completions"] == [" ran", " sat"]
