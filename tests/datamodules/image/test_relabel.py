from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule, relabel_images
from pl_prefopt.judges import Judge
from tests.datamodules.sample_files import write_jsonl
from tests.datamodules.sample_images import encoded, image_folder


class Red(Judge):
    """Mean red, in steps of 1/255; remembers the sizes of its batches and the shapes it saw."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def score(self, conditions: Sequence[str], samples: Sequence[Any]) -> Tensor:
        self.sizes.append(len(samples))
        self.seen += [(c, tuple(s.shape)) for c, s in zip(conditions, samples, strict=True)]
        return torch.stack([(s[0].mean() * 255).round() for s in samples])


def flat(folder: Path, **reds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, red) in enumerate(reds.items()):
        Image.new("RGB", (6 + i, 5), (red, 9, 9)).save(folder / f"{name}.png")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    flat(tmp_path / "in", a=10, b=50, c=52, d=200)
    rows = [
        {"caption": "x", "chosen": "a.png", "rejected": "b.png", "weight": 0.5, "preference_prob": 0.9},
        {"caption": "y", "chosen": "d.png", "rejected": "c.png", "weight": 1.0, "preference_prob": 0.9},
        {"caption": "y", "chosen": "c.png", "rejected": "b.png", "weight": 1.0, "preference_prob": 0.9},
    ]
    write_jsonl(tmp_path / "in" / "pairs.jsonl", rows)
    return tmp_path / "in"


def test_the_judge_decides_and_near_ties_are_counted(folder: Path) -> None:
    judge = Red()
    counts = relabel_images(str(folder / "pairs.jsonl"), judge, folder / "out.jsonl", margin=2.0, batch_size=2)
    assert counts == {"read": 3, "pairs": 2, "ties": 1, "agree": 1, "disagree": 1, "judged": 5}
    named = [{"image_0": "a.png", "image_1": "b.png"}, {"image_0": "d.png", "image_1": "c.png"}]
    assert lines(folder / "out.jsonl") == [
        {"caption": "x", "label_0": 0.0, "score_0": 10, "score_1": 50, "weight": 0.5, **named[0]},
        {"caption": "y", "label_0": 1.0, "score_0": 200, "score_1": 52, "weight": 1.0, **named[1]},
    ]
    assert max(judge.sizes) == 2
    assert judge.seen[0] == ("x", (3, 5, 6))
    assert len(judge.seen) == len(set(judge.seen)) == 5
    data = ImagePreferenceDataModule(str(folder / "out.jsonl"), geometry=Geometry(4), cache_dir=str(folder / "cache"))
    data.setup("fit")
    rows = data.datasets["train"]
    assert [round((rows[i]["pixels"][0, 0].mean().item() + 1) * 127.5) for i in range(2)] == [50, 200]


def test_ties_may_be_kept_as_half(folder: Path) -> None:
    relabel_images(str(folder / "pairs.jsonl"), Red(), folder / "out.jsonl", margin=2.0, ties="half")
    assert [r["label_0"] for r in lines(folder / "out.jsonl")] == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_bytes_and_rankings(tmp_path: Path, ending: str) -> None:
    images = [encoded(Image.new("RGB", (4, 4), (r, 0, 0)), "PNG") for r in (5, 90, 40)]
    table = {"prompt": ["p"], "images": [images], "ranks": [[1, 2, 3]]}
    parquet.write_table(pa.table(table), tmp_path / "in.parquet")
    out = tmp_path / "out" / f"pairs.{ending}"
    counts = relabel_images(str(tmp_path / "in.parquet"), Red(), out)
    assert counts == {"read": 1, "pairs": 3, "ties": 0, "agree": 1, "disagree": 2, "judged": 3}
    data = ImagePreferenceDataModule(str(out), geometry=Geometry(4), cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    rows = data.datasets["train"]
    reds = [[round((v.item() + 1) * 127.5) for v in rows[i]["pixels"][:, 0, 0, 0]] for i in range(3)]
    assert reds == [[90, 5], [40, 5], [90, 40]]
    if ending == "jsonl":
        assert len(list((out.parent / "images").iterdir())) == 3


def test_many_rows_are_written_in_row_groups(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", 70, (4, 4))
    relabel_images(str(path), Red(), tmp_path / "out.parquet", batch_size=7, ties="half")
    assert parquet.ParquetFile(tmp_path / "out.parquet").metadata.num_row_groups == 2
    assert parquet.read_table(tmp_path / "out.parquet")["caption"].to_pylist() == [
        f"caption {i % 3}" for i in range(70)
    ]


def test_nothing_is_left_behind_when_it_fails(folder: Path) -> None:
    (folder / "c.png").write_bytes(b"broken")
    source = str(folder / "pairs.jsonl")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: field 'rejected'"):
        relabel_images(source, Red(), folder / "out.jsonl")
    assert not list(folder.glob("*out.jsonl*"))
    counts = relabel_images(source, Red(), folder / "out.jsonl", on_bad_row="drop")
    assert counts["dropped/unreadable"] == 2
    assert counts["pairs"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"margin": -1.0}, "margin must be a number >= 0.*, got -1.0"),
        ({"margin": float("nan")}, "margin must be .*, got nan"),
        ({"ties": "keep"}, "ties must be one of drop, half, got 'keep'"),
        ({"out": "x.csv"}, r"ending of out must be one of .jsonl, .parquet, got '.csv'"),
        ({"out": "pairs.jsonl"}, "out must be a new file"),
        ({"margin": 1000.0}, "margin must leave at least one pair, got none at 1000"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_are_named(folder: Path, options: dict[str, Any], words: str) -> None:
    out = folder / options.pop("out", "out.jsonl")
    with pytest.raises(ValueError, match=words):
        relabel_images(str(folder / "pairs.jsonl"), Red(), out, **options)
