from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule
from pl_prefopt.datamodules.image.geometry import MOVED
from tests.datamodules.sample_files import copy_of, write_jsonl
from tests.datamodules.sample_images import encoded, image_folder, noise


def ready(path: Path, stage: str = "fit", **options: Any) -> ImagePreferenceDataModule:
    given: dict[str, Any] = {"resolution": [12, 16], "batch_size": 2, "cache_dir": str(path.parent / "cache")}
    given |= options
    geometry = Geometry(**{name: given.pop(name) for name in MOVED if name in given})
    data = ImagePreferenceDataModule(str(path), geometry=geometry, **given)
    data.prepare_data()
    data.setup(stage)
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "data", 6)


def test_batches_hold_the_contract(path: Path) -> None:
    data = ready(path)
    batches = list(data.train_dataloader())
    assert sorted(i for b in batches for i in b["index"].tolist()) == list(range(6))
    batch = batches[0]
    assert batch.keys() == {"pixels", "caption", "time_ids", "index"}
    assert batch["pixels"].shape == (2, 2, 3, 12, 16)
    assert batch["pixels"].dtype == batch["time_ids"].dtype == torch.float32
    assert batch["time_ids"].tolist() == [[24, 32, 0, 0, 12, 16]] * 2
    assert batch["caption"] == [f"caption {i % 3}" for i in batch["index"].tolist()]
    for row, index in enumerate(batch["index"].tolist()):
        for k in (0, 1):
            expected = np.asarray(noise(2 * index + k).resize((16, 12), 1), float)
            found = (batch["pixels"][row, k].permute(1, 2, 0).numpy() + 1) * 127.5
            assert np.abs(found - expected).max() < 1e-3


def test_the_better_image_comes_first(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    jpg = [encoded(noise(i)) for i in range(4)]
    table = {"caption": ["a", "b"], "jpg_0": jpg[:2], "jpg_1": jpg[2:], "label_0": [0.0, 1.0]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    rows = ready(tmp_path / "a.parquet", resolution=[24, 32]).datasets["train"]
    want = [[2, 0], [1, 3]]
    for i in range(2):
        for k in (0, 1):
            exact = torch.from_numpy(np.array(noise(want[i][k]))).permute(2, 0, 1).float() / 127.5 - 1
            assert torch.allclose(rows[i]["pixels"][k], exact, atol=1e-6)


TIES = [
    {"caption": "a", "image_0": "good0.png", "image_1": "bad0.png", "label_0": 0},
    {"caption": "a", "image_0": "good1.png", "image_1": "bad1.png", "label_0": 0.5},
    {"caption": "b", "image_0": "good2.png", "image_1": "bad2.png", "label_0": 1},
]


@pytest.mark.parametrize(
    ("ties", "pairs", "counted"), [("drop", 2, "dropped"), ("half", 3, "half"), ("keep", 3, "kept")]
)
def test_ties(path: Path, ties: str, pairs: int, counted: str) -> None:
    data = ready(write_jsonl(path.parent / "ties.jsonl", TIES), ties=ties, batch_size=1)
    rows = data.datasets["train"]
    assert len(rows) == pairs
    assert data.stats("train")["counts"] == {"read": 3, f"ties/{counted}": 1, "pairs": pairs}
    soft = [rows[i].get("preference_prob") for i in range(pairs)]
    assert soft == ([1.0, 0.5, 1.0] if ties == "half" else [None] * pairs)


def test_numbers_come_through(tmp_path: Path) -> None:
    data = ready(image_folder(tmp_path / "data", 2, weight=0.5, preference_prob=0.75))
    batch = next(iter(data.train_dataloader()))
    assert batch["weight"].tolist() == [0.5, 0.5]
    assert batch["preference_prob"].tolist() == [0.75, 0.75]


def test_randomness_is_keyed_by_seed_epoch_and_row(path: Path) -> None:
    options: dict[str, Any] = {"resolution": 12, "crop": "shared-random", "flip": 0.5, "caption_dropout": 0.3}

    def epochs(**more: Any) -> list[Any]:
        rows = ready(path, **(options | more)).datasets["train"]
        out = []
        for epoch in (0, 1, 0):
            rows.set_epoch(epoch)
            out.append([rows[i] for i in range(6)])
        return out

    first, second, again = epochs()
    assert all(
        torch.equal(a["pixels"], b["pixels"]) and a["caption"] == b["caption"]
        for a, b in zip(first, again, strict=True)
    )
    assert any(not torch.equal(a["pixels"], b["pixels"]) for a, b in zip(first, second, strict=True))
    other = epochs(seed=1)[0]
    assert any(not torch.equal(a["pixels"], b["pixels"]) for a, b in zip(first, other, strict=True))
    loaded = list(ready(path, **options, num_workers=1).train_dataloader())
    for batch in loaded:
        for pixels, index in zip(batch["pixels"], batch["index"].tolist(), strict=True):
            assert torch.equal(pixels, first[index]["pixels"])


def test_caption_dropout_is_per_pair_and_only_in_training(path: Path) -> None:
    data = ready(path, val=copy_of(path), caption_dropout=0.4, flip=1.0)
    rows = data.datasets["train"]
    dropped = 0
    for epoch in range(50):
        rows.set_epoch(epoch)
        dropped += sum(rows[i]["caption"] == "" for i in range(6))
    assert 90 < dropped < 150
    val = data.datasets["val"]
    assert all(val[i]["caption"] for i in range(6))
    assert torch.equal(val[0]["pixels"].flip(-1), rows[0]["pixels"])


def test_validation_shares_no_caption_with_training(path: Path) -> None:
    data = ready(path, val=0.3)
    train, val = (set(data.datasets[n].captions) for n in ("train", "val"))
    assert not train & val
    assert (len(data.datasets["train"]), len(data.datasets["val"])) == (4, 2)
    assert sorted(data.conditions("train") + data.conditions("val")) == ["caption 0", "caption 1", "caption 2"]
    with pytest.raises(ValueError, match="leaves nothing for training"):
        ready(path, val=0.9)


def test_the_digest_is_of_what_the_model_sees(path: Path) -> None:
    digest = ready(path).datasets["train"].digest()
    assert ready(path, batch_size=3, flip=0.5).datasets["train"].digest() == digest
    assert ready(path, resolution=12).datasets["train"].digest() != digest
    noise(99).save(path.parent / "good3.png")
    assert ready(path).datasets["train"].digest() != digest


def test_the_scan_is_kept_and_made_anew_when_an_image_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pl_prefopt.datamodules.media import scan

    rows = ready(path).datasets["train"]
    calls: list[str] = []
    inspect = scan.inspect
    monkeypatch.setattr(scan, "inspect", lambda file, kind: (calls.append(file.field), inspect(file, kind))[1])
    ready(path)
    assert calls == []
    noise(99).save(path.parent / "bad2.png")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 3: field 'rejected' must be unchanged, got other bytes"):
        rows[2]
    ready(path)
    assert len(calls) == 12


BAD_FILES = {
    "truncated": encoded(noise(3, 96, 128), "JPEG")[:-300],
    "unreadable": b"nothing",
    "cmyk": encoded(noise(3).convert("CMYK"), "JPEG"),
    "identical": encoded(noise(4)),
}


@pytest.mark.parametrize("reason", BAD_FILES)
def test_a_bad_image_is_an_error_with_its_row_or_counted(path: Path, reason: str) -> None:
    (path.parent / "bad2.png").write_bytes(BAD_FILES[reason])
    (path.parent / "good2.png").write_bytes(encoded(noise(4)))
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 3: field 'rejected' must be .+, got .+"):
        ready(path)
    data = ready(path, on_bad_row="drop")
    assert data.stats("train")["counts"][f"dropped/{reason}"] == 1
    assert [data.datasets["train"].source_row(i) for i in range(5)] == [0, 1, 3, 4, 5]


def test_conversions_are_counted(path: Path) -> None:
    (path.parent / "bad2.png").write_bytes(BAD_FILES["cmyk"])
    data = ready(path, convert=["cmyk"])
    assert data.stats("train")["counts"]["changed/cmyk"] == 1
    assert data.datasets["train"][2]["pixels"].shape == (2, 3, 12, 16)


def test_statistics_tell_what_the_geometry_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = image_folder(tmp_path / "data", 2)
    noise(50, 20, 20).save(path.parent / "bad1.png")
    stats = ready(path, resolution=30).stats("train")
    assert (stats["pairs"], stats["images"], stats["captions"]) == (2, 4, 2)
    assert (stats["enlarged"], stats["reshaped"], stats["cut"]) == (1.0, 0.5, 0.25)
    assert stats["sides"] == {"height": [24, 24, 24], "width": [32, 32, 32]}


def test_two_sources_keep_their_rows_apart(tmp_path: Path) -> None:
    one, two = image_folder(tmp_path / "a", 2), image_folder(tmp_path / "b", 3)
    data = ImagePreferenceDataModule(
        {"x": str(one), "y": str(two)}, geometry=Geometry(8), cache_dir=str(tmp_path / "cache")
    )
    data.setup("fit")
    assert {k: v.tolist() for k, v in data.sources().items()} == {"x": [0, 1], "y": [2, 3, 4]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ties": "maybe"}, "ties must be one of drop, half, keep, got 'maybe'"),
        ({"caption_dropout": 1.0}, r"caption_dropout must lie in \[0, 1\), got 1.0"),
        ({"columns": {"captions": "x"}}, "columns must be one of .*, got 'captions'.*Did you mean 'caption'"),
        ({"crop_variants": -1}, "crop_variants"),
        ({"on_bad_row": "skip"}, "on_bad_row must be one of error, drop, got 'skip'"),
        ({"convert": ["rgba"]}, "convert must be one of .*, got 'rgba'"),
        ({"limit": {"trains": 3}}, "limit must be one of .*, got 'trains'"),
        ({"resolution": 0}, "resolution"),
        ({"val": 1.5}, "val must be .*, got 1.5"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ready(Path("pairs.jsonl"), **options)


def test_rows_can_be_pickled_and_hyperparameters_are_plain(path: Path) -> None:
    data = ready(path)
    rows = pickle.loads(pickle.dumps(data.datasets["train"]))
    assert torch.equal(rows[1]["pixels"], data.datasets["train"][1]["pixels"])
    assert data.hparams["geometry"]["resolution"] == [12, 16]


def test_rounds_write_pairs_that_are_trained_on(path: Path, tmp_path: Path) -> None:
    data = ready(path)
    assert data.conditions() == ["caption 0", "caption 1", "caption 2"]
    truths = data.truths(["caption 1", "caption 0"])
    expected = [data.datasets["train"][i]["pixels"][0] / 2 + 0.5 for i in (1, 0)]
    assert all(torch.equal(a, b) for a, b in zip(truths, expected, strict=True))
    made = [torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    names = data.write_samples(tmp_path, "round-000/samples/0", made)
    truth = data.write_samples(tmp_path, "truths/1", truths[:1])
    rows = [{"condition": "caption 1", "chosen": truth[0], "rejected": names[1], "weight": 0.5, "round": 0}]
    file = data.write_pairs(tmp_path, "round-001/pairs", [*rows, rows[0] | {"rejected": truth[0]}])
    data.replace_train([file])
    train = data.datasets["train"]
    assert (len(train), train.counts["dropped/identical"]) == (1, 1)
    assert (train[0]["caption"], train[0]["weight"]) == ("caption 1", 0.5)
    want = torch.stack([truths[0], made[1]]) * 2 - 1
    assert (train[0]["pixels"] - want).abs().max() <= 1.01 / 255
    assert data.conditions() == ["caption 0", "caption 1", "caption 2"]
    assert torch.equal(data.truths(["caption 2"])[0], ready(path).truths(["caption 2"])[0])


def test_the_same_pixels_in_another_encoding_are_refused(path: Path) -> None:
    noise(4).save(path.parent / "bad2.png", compress_level=0)
    with pytest.raises(ValueError, match=r"line 3: field 'rejected' must be .*, got the same content as another"):
        ready(path)
    assert ready(path, on_bad_row="drop").stats("train")["counts"]["dropped/identical"] == 1


def test_rejected_images_are_no_more_distorted_than_chosen_ones(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", 3)
    for i in range(3):
        noise(50 + i, 40, 20).save(path.parent / f"bad{i}.png")
    stats = ready(path, resolution=20).stats("train")
    assert stats["stretched"] == [0, 0]
    assert stats["reshaped"] == 1.0
    assert (stats["cut"], stats["rejected"]["cut"]) == (pytest.approx(0.26, abs=0.02), 0.5)


def test_absolute_paths_inside_the_folder_are_read(path: Path) -> None:
    row = {"caption": "a", "chosen": str(path.parent / "good0.png"), "rejected": "bad0.png"}
    assert len(ready(write_jsonl(path.parent / "absolute.jsonl", [row, row]), batch_size=1).datasets["train"]) == 2


def test_columns_that_nothing_reads_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = image_folder(tmp_path / "data", 2, source="web", model="m")
    with caplog.at_level("INFO"):
        ready(path)
    assert caplog.text.count("train: columns that are not used: 'model', 'source'") == 1


def test_pairs_that_their_scores_contradict_are_refused(tmp_path: Path) -> None:
    path = image_folder(tmp_path / "data", 2, score_chosen=1, score_rejected=2)
    with pytest.raises(ValueError, match="'score_chosen' must be not worse than 'score_rejected', got 1"):
        ready(path)
    rows = [{"prompt": "a", "image_path": ["good0.png", "bad0.png"], "rank": [1, 2], "scores": [1, 2]}]
    with pytest.raises(ValueError, match="'scores' must be in agreement with 'ranks'"):
        ready(write_jsonl(path.parent / "ranked.jsonl", rows))
    with pytest.raises(ValueError, match="column 'weight' must be above 0 in at least one row"):
        ready(image_folder(tmp_path / "zero", 2, weight=0))
