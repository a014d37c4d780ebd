"""The media layer serves what is no image: sounds of different lengths, latents (C, T), captions with masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pl_prefopt.datamodules.media import cache as media_cache
from pl_prefopt.datamodules.media.collate import stack
from tests.datamodules.media.toy import Clips, WavDataModule, WavEncoder, audio_folder, sound, toy_trainer
from tests.datamodules.sample_files import write_jsonl


def ready(path: Path, encoder: WavEncoder | None = None, **options: Any) -> WavDataModule:
    data = WavDataModule(str(path), **({"cache_dir": str(path.parent / "cache"), "batch_size": 2} | options))
    if encoder is not None:
        data.trainer = toy_trainer(encoder)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return audio_folder(tmp_path / "data", 6)


def test_decoded_files_come_in_batches(path: Path) -> None:
    data = ready(path, clips=Clips(100, places=1))
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {"waveform", "duration", "caption", "index"}
    assert batch["waveform"].shape == (2, 2, 100)
    for row, index in enumerate(batch["index"].tolist()):
        for k in (0, 1):
            length = 60 + 40 * ((2 * index + k) % 6)
            expected = torch.zeros(100)
            expected[: min(length, 100)] = torch.from_numpy(sound(2 * index + k, length))[:100]
            assert torch.equal(batch["waveform"][row, k], expected)
            assert batch["duration"][row, k] == pytest.approx(min(length, 100) / 8000)


def test_latents_and_masks_are_cached_once(path: Path) -> None:
    encoder = WavEncoder()
    data = ready(path, encoder, clips=Clips(100, places=3))
    rows = data.datasets["train"]
    assert sorted(set(encoder.texts)) == ["", "rain", "rain rain", "rain rain rain"]
    assert len(encoder.texts) == 4
    plain = ready(path, clips=Clips(100, places=3)).datasets["train"]
    for epoch in range(4):
        rows.set_epoch(epoch)
        plain.set_epoch(epoch)
        for i in range(6):
            fresh = WavEncoder().encode_media(plain[i]["waveform"])["sample"]
            assert torch.equal(rows[i]["latents_sample"], fresh)
            assert rows[i]["prompt_mask"].dtype == torch.bool
            assert int(rows[i]["prompt_mask"].sum()) == 1 + len(rows[i]["caption"].split())
    batch = next(iter(data.train_dataloader()))
    assert batch["latents_sample"].shape == (2, 2, 2, 20)
    assert batch["prompt_embeds"].shape[:2] == batch["prompt_mask"].shape
    again = WavEncoder()
    ready(path, again, clips=Clips(100, places=3))
    assert (again.sounds, again.texts) == (0, [])


def test_captions_of_different_lengths_are_padded_under_their_mask(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_cache, "TEXTS_PER_SHARD", 1)
    data = ready(path, WavEncoder(), clips=Clips(100, places=1), batch_size=6, shuffle=False)
    rows, batch = data.datasets["train"], next(iter(data.train_dataloader()))
    assert {tuple(rows[i]["prompt_embeds"].shape) for i in range(6)} == {(2, 4), (3, 4), (4, 4)}
    assert batch["prompt_embeds"].shape == (6, 4, 4)
    assert batch["prompt_mask"].sum(1).tolist() == [2, 3, 4, 2, 3, 4]
    assert not batch["prompt_embeds"][~batch["prompt_mask"]].any()


def test_other_shapes_are_never_padded_silently() -> None:
    with pytest.raises(ValueError, match=r"prompt_embeds must have one shape .*got \[\(2, 4\), \(3, 4\)\]"):
        stack("prompt_embeds", [torch.ones(2, 4), torch.ones(3, 4)], masked=False)


def test_a_killed_run_goes_on_and_ranks_share_the_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_cache, "MEDIA_PER_SHARD", 2)
    options: dict[str, Any] = {"clips": Clips(100, places=1), "encode_batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        ready(path, WavEncoder(after=5), **options)
    encoders = [WavEncoder(), WavEncoder()]

    def second_rank(name: str) -> None:
        """At rank 0's first barrier rank 1 does its part, up to the second barrier."""
        if not name.endswith("opened"):
            return
        other = WavDataModule(str(path), cache_dir=str(path.parent / "cache"), **options)
        other.trainer = toy_trainer(encoders[1], 1, 2, stop)
        with pytest.raises(InterruptedError):
            other.setup("fit")

    def stop(name: str) -> None:
        if name.endswith("filled"):
            raise InterruptedError

    data = WavDataModule(str(path), cache_dir=str(path.parent / "cache"), **options)
    data.trainer = toy_trainer(encoders[0], 0, 2, second_rank)
    data.setup("fit")
    assert [encoder.sounds for encoder in encoders] == [4, 4], "12 files, 4 of which the killed run had stored"
    assert data.datasets["train"][5]["latents_sample"].shape == (2, 2, 20)


def test_variable_durations_in_buckets(path: Path) -> None:
    data = ready(path, WavEncoder(), clips=Clips(places=0), buckets=True, batch_size=1)
    widths = sorted(batch["latents_sample"].shape[-1] for batch in data.train_dataloader())
    assert widths == [20, 20, 40, 40, 60, 60]


def test_bad_files_and_data_columns(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (path.parent / "bad1.wav").write_bytes(b"RIFF and nothing more")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: field 'rejected' must be a WAV file, got 21 bytes"):
        ready(path)
    graded = [row | {"relevance": [2, 1], "weight": 0.5} for row in rows]
    data = ready(write_jsonl(path.parent / "graded.jsonl", graded), on_bad_row="drop")
    assert data.datasets["train"].counts["dropped/unreadable"] == 1
    batch = next(iter(data.train_dataloader()))
    assert batch["relevance"].tolist() == [[2, 1], [2, 1]]
    assert batch["weight"].tolist() == [0.5, 0.5]


def test_missing_files_name_the_argument_of_the_modality(path: Path) -> None:
    (path.parent / "good0.wav").unlink()
    with pytest.raises(ValueError, match=r"must be an existing file \(audio\), .*or at audio_folder"):
        ready(path)


def test_rounds_write_sounds_that_are_trained_on(path: Path, tmp_path: Path) -> None:
    data = ready(path, clips=Clips(100, places=1))
    truth = data.truths(["rain rain"])[0]
    assert torch.equal(truth, data.datasets["train"][1]["waveform"][0])
    names = data.write_samples(tmp_path, "round-000/samples/0", [truth, torch.zeros(80)])
    assert names == ["round-000/samples/0-0.wav", "round-000/samples/0-1.wav"]
    pair = {"condition": "rain rain", "chosen": names[0], "rejected": names[1]}
    data.replace_train(data.write_pairs(tmp_path, "round-001/pairs", [pair]))
    row = data.datasets["train"][0]
    assert np.allclose(row["waveform"][0], truth, atol=1 / 32768)
    assert data.conditions() == ["rain", "rain rain", "rain rain rain"]
