from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pl_prefopt.datamodules.image.decode import image_kind
from pl_prefopt.datamodules.media.records import MediaFile, MediaSource, Preference, media_file, parse_record
from pl_prefopt.utilities.rows import BadRow
from tests.datamodules.sample_files import write_jsonl
from tests.datamodules.sample_images import encoded, image_folder, noise

ROW = {"caption": "a cat", "image_0": b"x", "image_1": b"y", "label_0": 1}


def read(row: dict[str, Any], columns: dict[str, str] | None = None) -> list[Preference]:
    def find(cell: object, column: str) -> MediaFile:
        return media_file(cell, column, "image", Path("folder"))

    return parse_record(row, image_kind(), find, columns).preferences


def image_source(spec: Any, **options: Any) -> MediaSource:
    return MediaSource.open(spec, image_kind(), **options)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (1, Preference(0, 1, 1.0)),
        (0, Preference(1, 0, 1.0)),
        (0.5, Preference(0, 1, 0.5)),
        ("0", Preference(1, 0, 1.0)),
    ],
)
def test_label_0_says_which_image_is_better(label: Any, expected: Preference) -> None:
    assert read(ROW | {"label_0": label}) == [expected]


def test_pick_a_pic_parquet(tmp_path: Path) -> None:
    images = [encoded(noise(i), "JPEG") for i in range(4)]
    table = {
        "caption": ["a", "b"],
        "jpg_0": images[:2],
        "jpg_1": images[2:],
        "label_0": [0.0, 0.5],
        "label_1": [1.0, 0.5],
    }
    parquet.write_table(pa.table(table), tmp_path / "train-00000.parquet")
    source = image_source(str(tmp_path))
    assert [source[i].preferences[0] for i in range(2)] == [Preference(1, 0, 1.0), Preference(0, 1, 0.5)]
    assert [p.read() for p in source[1].files] == [images[1], images[3]]
    assert source[0].caption == "a"


def test_folder_with_jsonl_and_csv(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", 2, weight=0.5)
    record = image_source(str(path))[1]
    assert (record.caption, record.numbers, record.preferences) == (
        "caption 1",
        {"weight": 0.5},
        [Preference(0, 1, 1.0)],
    )
    assert record.files[1].read() == (tmp_path / "data" / "bad1.png").read_bytes()
    with (tmp_path / "data" / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["caption", "image_0", "image_1", "label_0"], ["x", "good0.png", "bad0.png", "0"]])
    record = image_source(str(tmp_path / "data" / "pairs.csv"))[0]
    assert record.preferences == [Preference(1, 0, 1.0)]


def test_rankings_give_all_ordered_pairs() -> None:
    row = {"prompt": "p", "image_path": ["a", "b", "c"], "rank": [2, 1, 2]}
    assert read(row) == [Preference(1, 0, 1.0), Preference(0, 2, 0.5), Preference(1, 2, 1.0)]
    assert read({"prompt": "p", "file_path": ["a", "b"], "human_preference": [0, 1]}) == [Preference(1, 0, 1.0)]


def test_columns_and_image_folder(tmp_path: Path) -> None:
    image_folder(tmp_path / "pictures", 1)
    rows = [{"what": "a dog", "better": "good0.png", "worse": "bad0.png"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = {"caption": "what", "chosen": "better", "rejected": "worse"}
    source = image_source(str(path), columns=columns, folder=str(tmp_path / "pictures"))
    assert source[0].files[0].read() == (tmp_path / "pictures" / "good0.png").read_bytes()
    assert source.stamp() != image_source(str(path)).stamp()


def test_images_of_a_datasets_folder_stay_encoded(tmp_path: Path) -> None:
    import datasets

    rows = {"caption": ["a"], "image_0": [noise(0)], "image_1": [noise(1)], "label_0": [1.0]}
    features = datasets.Features(
        caption=datasets.Value("string"),
        image_0=datasets.Image(),
        image_1=datasets.Image(),
        label_0=datasets.Value("float"),
    )
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "set")
    picture = image_source(str(tmp_path / "set"))[0].files[0]
    assert picture.read().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        (ROW | {"label_0": 0.7}, "bad_label", "field 'label_0' must be 0, 0.5 or 1, got 0.7"),
        (ROW | {"label_0": 0, "label_1": 0}, "bad_label", "field 'label_1' must be 1, as label_0 is 0, got 0"),
        (ROW | {"label_0": True}, "bad_label", "got True"),
        (ROW | {"label_0": None}, "missing_column", "field 'label_0'"),
        (ROW | {"caption": None}, "missing_caption", "columns: {caption"),
        (ROW | {"caption": "  "}, "missing_caption", "visible character"),
        (ROW | {"image_0": b""}, "empty_image", "0 bytes"),
        (ROW | {"image_0": 3}, "bad_type", "field 'image_0' must be the bytes of a file (image), or its path, got 3"),
        ({"caption": "a"}, "missing_column", "field 'chosen'"),
        ({"caption": "a", "chosen": "x.png"}, "missing_column", "field 'rejected'"),
        ({"caption": "a", "chosen": "x.png", "rejected": "./x.png"}, "identical", "'x.png' twice"),
        ({"caption": "a", "chosen": "../x.png", "rejected": "y.png"}, "outside_path", "inside the data folder"),
        ({"caption": "a", "chosen": "/etc/passwd", "rejected": "y.png"}, "outside_path", "field 'chosen'"),
        ({"prompt": "a", "images": ["x"], "rank": [1]}, "bad_type", "at least two images"),
        ({"prompt": "a", "images": ["x", "y"], "rank": [1]}, "bad_length", "a list of 2 numbers"),
        ({"prompt": "a", "images": ["x", "y"]}, "missing_column", "field 'ranks'"),
        (ROW | {"weight": -1.0}, "bad_number", "field 'weight'"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(row: dict[str, Any], reason: str, words: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert caught.value.reason == reason
    assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    rows = [{"caption": "a", "chosen": "no.png", "rejected": "other.png"}]
    record = image_source(str(write_jsonl(tmp_path / "rows.jsonl", rows)))[0]
    with pytest.raises(
        BadRow, match=r"field 'chosen' must be an existing file \(image\), got no readable file 'no.png'"
    ):
        record.files[0].read()


def test_made_rows_may_name_images_one_folder_up(tmp_path: Path) -> None:
    image_folder(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    rows = [{"caption": "x", "chosen": "../a/good0.png", "rejected": "../a/bad0.png"}]
    path = str(write_jsonl(tmp_path / "b" / "pairs.jsonl", rows))
    assert image_source(path, above=1)[0].files[0].read() == (tmp_path / "a" / "good0.png").read_bytes()
    for above in (0, 1):
        write_jsonl(tmp_path / "b" / "pairs.jsonl", [rows[0] | {"chosen": "../" * (above + 1) + "x.png"}])
        with pytest.raises(BadRow, match="inside the data folder"):
            image_source(path, above=above)[0]
