from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pl_prefopt.datamodules.files.open import open_source
from pl_prefopt.datamodules.files.readers import Source
from pl_prefopt.utilities.rows import BadRow, inside
from tests.datamodules.sample_files import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"prompt": f"p{i}", "chosen": f"yes, {i}\n", "rejected": f'"no" {i} é', "margins": [[1.0], [float(i)]]}
    for i in range(7)
]


def as_csv(path: Path) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(row | {"margins": json.dumps(row["margins"])} for row in ROWS)
    return str(path)


class Parsed(Source):
    """Reads the margins of a CSV source."""

    def __init__(self, source: Source) -> None:
        self.source, self.digest = source, source.digest

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.source[index]
        return row | {"margins": json.loads(row["margins"])}


def as_parquet(path: Path) -> str:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    return str(path)


def as_jsonl(path: Path) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode() + b"\r\n")
    return str(path)


def as_json(path: Path) -> str:
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return str(path)


def as_folder(path: Path) -> str:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return str(path)


def as_parts(path: Path) -> list[str]:
    return [
        str(write_jsonl(path.with_suffix(".a.jsonl"), ROWS[:3])),
        str(write_jsonl(path.with_suffix(".b.jsonl"), ROWS[3:])),
    ]


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (as_jsonl, "a.jsonl"), (as_json, "a.json"), (as_parquet, "a.parquet"), (as_csv, "a.csv"), (as_folder, "a"),
        (as_parts, "a"),
    ],
)  # fmt: skip
def test_every_format_gives_the_same_rows(write: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
    source: Source = open_source(write(tmp_path / name))
    assert len(source) == 7
    if write is as_csv:  # numbers stay text until it is known which column holds them
        source = Parsed(source)
    assert list(source) == ROWS
    assert [source[i] for i in (6, 0, 3)] == [ROWS[6], ROWS[0], ROWS[3]]
    assert list(source.iterate(5)) == ROWS[5:]
    assert source.digest() == open_source(write(tmp_path / name)).digest() or write is as_folder


def test_places_are_named_as_a_person_finds_them(tmp_path: Path) -> None:
    assert open_source(as_jsonl(tmp_path / "a.jsonl")).where(2).endswith("a.jsonl, line 5")
    assert open_source(as_parquet(tmp_path / "a.parquet")).where(2).endswith("a.parquet, row 3")
    assert open_source(as_parts(tmp_path / "a")).where(4).endswith("a.b.jsonl, line 2")


def test_digest_follows_content_not_name(tmp_path: Path) -> None:
    a, b = write_jsonl(tmp_path / "a.jsonl", ROWS), write_jsonl(tmp_path / "b.jsonl", ROWS)
    c = write_jsonl(tmp_path / "c.jsonl", ROWS[::-1])
    digests = [open_source(str(p)).digest() for p in (a, b, c)]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_with_splits_never_mixes_them(tmp_path: Path) -> None:
    for name, rows in (
        ("train-00000", ROWS[:2]),
        ("train-00001", ROWS[2:3]),
        ("validation", ROWS[3:4]),
        ("test", ROWS[4:]),
    ):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert list(open_source(str(tmp_path), "train")) == ROWS[:3]
    assert list(open_source(str(tmp_path), "val/film")) == ROWS[3:4]
    assert list(open_source(str(tmp_path), "test")) == ROWS[4:]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"test: folder .* must hold a file for it, got train-00000.jsonl"):
        open_source(str(tmp_path), "test")


def test_a_folder_without_such_names_is_read_whole(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ROWS[4:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:4])
    assert list(open_source(str(tmp_path), "test")) == ROWS


def broken(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"x": "a"}\n{"chosen": "caf\xe9"}\n', r"a.jsonl, line 2 must .*byte 0xe9 at position 15.*iconv"),
        ("a.json", b'[{"chosen": "caf\xe9"}]', r"a.json must be UTF-8 text, got byte 0xe9 at position 16"),
        ("a.csv", b"chosen,rejected\ncaf\xe9,b\n", r"a.csv must be UTF-8 text, got byte 0xe9"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"a.jsonl, line 3 must be one JSON object, got an error at column"),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', r"a.jsonl, line 2 must be an object with named fields, got a list"),
        ("a.json", b'{"a": 1}\n{"a": 2}', r"a.json must be one JSON list.* at line 2.*must end in .jsonl"),
        ("a.json", b'{"a": 1}', r"a.json must be one JSON list of objects, got a dict at the top"),
        ("a.json", b"[1]", r"a.json, row 1 must be an object with named fields, got a int"),
        ("a.jsonl", b"\n\n", r"a.jsonl must hold at least one row"),
        ("a.csv", b"chosen,rejected\na\n", r"a.csv, row 1 must have 2 fields, as the header, got another number"),
        ("a.csv", b"chosen,rejected\na,b,c\n", r"a.csv, row 1 must have 2 fields"),
        ("a.csv", b'chosen,rejected\n"a,b\n', r"a.csv must be valid CSV, got an error after line 1"),
        ("a.csv", b"chosen,rejected,chosen\na,b,c\n", r"a.csv must have one column of each name, got 'chosen'"),
        ("a.tsv", b"chosen,rejected\na,b\n", r"a.tsv must have columns separated by tabs, .* the one column 'chosen"),
        ("a.csv", b"chosen;rejected\na;b\n", r"a.csv must have columns separated by commas"),
        ("a.jsonl", b'{"a": {"b": 1, "b": 2}}\n', r"a.jsonl, line 1 must .*, got the key 'b' twice in one object"),
        ("a.json", b'[{"b": 1, "b": 2}]', r"a.json must be one JSON list of objects, got the key 'b' twice"),
        ("a.txt", b"hello", r"must end in one of .jsonl.*, got '.txt'"),
        ("a.parquet", b"PAR1 and nothing more", r"a.parquet must be a complete Parquet file, got 21 bytes"),
    ],
)  # fmt: skip
def test_broken_files_say_where_and_what(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = broken(tmp_path / name, content)
    with pytest.raises(ValueError, match=words):
        list(open_source(path))


def test_truncated_parquet(tmp_path: Path) -> None:
    whole = Path(as_parquet(tmp_path / "a.parquet")).read_bytes()
    for share in (0.5, 0.99):
        with pytest.raises(ValueError, match=r"cut.parquet must be a complete Parquet file, .*cut off while copying"):
            list(open_source(broken(tmp_path / "cut.parquet", whole[: int(share * len(whole))])))
    damaged = whole[:10] + b"\0" * 400 + whole[410:]
    with pytest.raises(ValueError, match=r"hole.parquet must be a complete Parquet file"):
        list(open_source(broken(tmp_path / "hole.parquet", damaged)))


def test_parquet_keeps_images_encoded(tmp_path: Path) -> None:
    """Parquet that `datasets` wrote says which columns are images; rows hold their bytes all the same."""
    features = datasets.Features(image=datasets.Image())
    row = {"image": {"bytes": b"not decoded", "path": None}}
    datasets.Dataset.from_list([row], features).to_parquet(tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet"))[0] == row


def test_missing_files_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_json(tmp_path / "pairs.json")
    with pytest.raises(ValueError, match=r"val must be an existing file, got '.*pair.json'.*Did you mean 'pairs.json'"):
        open_source(str(tmp_path / "pair.json"), "val")
    with pytest.raises(ValueError, match=r"train must be a path.*, got \[\]"):
        open_source([])
    with pytest.raises(ValueError, match="must hold data files"):
        open_source(str(_empty(tmp_path)))

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"got 'somebody/pairs': no file or folder.*no network"):
        open_source("somebody/pairs")


def _empty(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def test_a_folder_of_several_splits_is_not_guessed(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"must be one split of .*, got all: name the folder test or train"):
        open_source(str(tmp_path / "d"))
    assert list(open_source(str(tmp_path / "d" / "test"))) == ROWS


def test_paths_in_data_stay_in_the_data_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    assert inside(root, "a/b.png") == root / "a" / "b.png"
    for path in ("../x.png", "/etc/hosts", "out/x.png", "a/../../x"):
        with pytest.raises(BadRow, match="a path inside the data folder"):
            inside(root, path)


def test_a_link_among_the_files_is_followed_to_where_it_leads(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    (root / "kept.png").symlink_to(root / "a" / "x.png")
    (root / "bad.png").symlink_to(tmp_path / "x.png")
    assert inside(root, "kept.png") == root / "a" / "x.png"
    assert inside(root, "a/../y.png") == root / "y.png"
    with pytest.raises(BadRow, match=r"a path inside the data folder, got 'bad\.png'"):
        inside(root, "bad.png")


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    column = pa.array(["a"])
    pq.write_table(pa.table([column, column], names=["chosen", "chosen"]), tmp_path / "a.parquet")
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"a.parquet must have one column of each name, got 'chosen' repeatedly"):
            open_source(str(tmp_path / "a.parquet"), streaming=streaming)


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", None])
def test_a_damaged_folder_of_save_to_disk(damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    file = next(Path(as_folder(tmp_path / "a")).glob("*.arrow"))
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"a must be a complete folder of datasets.save_to_disk, got one that cannot"):
        open_source(str(tmp_path / "a"))
