"""A modality that is no image, written with the media layer alone: WAV files of different lengths, in mono."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.datamodules.files.splits import Splits
from pl_prefopt.datamodules.media.datamodule import MediaPreferenceDataModule
from pl_prefopt.datamodules.media.kind import Decoded, MediaKind, Sizes
from pl_prefopt.datamodules.media.rows import uniform
from pl_prefopt.datamodules.media.write import write_media
from pl_prefopt.utilities.rows import BadRow
from pl_prefopt.utilities.seeding import keyed_generator
from tests.datamodules.sample_files import write_jsonl


def decode_wav(data: bytes, field: str) -> Decoded[np.ndarray]:
    """16-bit mono to float32 in [-1, 1]."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            values = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    except (wave.Error, EOFError) as error:
        raise BadRow("unreadable", field, f"{len(data)} bytes ({error})", "a WAV file") from None
    return Decoded(values, values.shape, (), "wav")


WAV = MediaKind("audio", "waveform", decode_wav, None, {"caption": ("text",)})


def save_wav(values: np.ndarray | Tensor, path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.asarray(values) * 32768).astype("<i2").tobytes())


@dataclass(frozen=True)
class Clip:
    """Samples `start` to `start + size` of both sounds, padded with silence."""

    size: int
    start: int
    heard: tuple[int, int]

    def key(self, which: int) -> str:
        return f"{self.size} {self.start}"

    def conditions(self) -> dict[str, Tensor]:
        return {"duration": torch.tensor([n / 8000 for n in self.heard])}


@dataclass(frozen=True)
class Clips:
    """Cuts of a fixed length, one of `places` per epoch; 0 keeps the whole of the longer sound, in buckets of 100."""

    length: int = 100
    places: int = 3
    seed: int = 0

    def view(self, sizes: Sizes, epoch: int, index: int) -> Clip:
        place = int(uniform(self.seed, "place", epoch, index) * self.places) if self.places else 0
        return self._clip(sizes, place)

    def variants(self, sizes: Sizes, index: int) -> list[Clip]:
        return list(dict.fromkeys(self._clip(sizes, place) for place in range(max(1, self.places))))

    def _clip(self, sizes: Sizes, place: int) -> Clip:
        length = self.length if self.places else 100 * (self.bucket(sizes) + 1)
        start = place * max(0, sizes[0][0] - length) // max(1, self.places - 1)
        heard = (min(length, sizes[0][0]), min(length, sizes[1][0]))
        return Clip(length, start, heard)

    def tensor(self, media: np.ndarray, which: int, view: Clip) -> Tensor:
        values = torch.from_numpy(media[view.start : view.start + view.size].copy())
        return torch.nn.functional.pad(values, (0, view.size - len(values)))

    def bucket(self, sizes: Sizes) -> int:
        return (sizes[0][0] - 1) // 100

    def without_randomness(self) -> Clips:
        return replace(self, places=min(self.places, 1))

    def settings(self) -> dict[str, Any]:
        return {"length": self.length, "places": self.places}


class WavEncoder:
    """Latents (2, T / 5) under one name, and embeddings as long as the longest caption of a call, with a mask."""

    def __init__(self, after: int = 10**9) -> None:
        self.after, self.sounds = after, 0
        self.texts: list[str] = []

    def encode_media(self, tensors: Tensor) -> dict[str, Tensor]:
        self.sounds += len(tensors)
        if self.sounds > self.after:
            raise KeyboardInterrupt
        means = tensors.unflatten(1, (-1, 5)).mean(-1)
        return {"sample": torch.stack([means, means.square()], 1)}

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        self.texts += captions
        lengths = torch.tensor([1 + len(c.split()) for c in captions])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        rows = [torch.randn(mask.shape[1], 4, generator=keyed_generator(c)) for c in captions]
        return {"prompt_embeds": torch.stack(rows) * mask[..., None], "prompt_mask": mask}

    def fingerprint(self) -> str:
        return "wav"


class WavDataModule(MediaPreferenceDataModule):
    """All that a modality has to write."""

    def __init__(self, train: str, val: Any = None, *, clips: Clips = Clips(), **options: Any) -> None:
        super().__init__(WAV, clips, Splits(train, val), **options)

    def write_samples(self, root: Path, name: str, samples: Sequence[Tensor]) -> list[str]:
        return write_media(root, name, samples, save_wav, "wav")


def sound(seed: int, length: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(-0.5, 0.5, length).astype(np.float32)
    return (coarse * 32768).round() / 32768


def audio_folder(folder: Path, count: int, **extra: Any) -> Path:
    """A folder with pairs.jsonl and two WAV files per row, of 60 to 260 samples."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        for k, name in enumerate(("good", "bad")):
            save_wav(sound(2 * i + k, 60 + 40 * ((2 * i + k) % 6)), folder / f"{name}{i}.wav")
        caption = " ".join(["rain"] * (1 + i % 3))
        rows.append({"text": caption, "chosen": f"good{i}.wav", "rejected": f"bad{i}.wav"} | extra)
    return write_jsonl(folder / "pairs.jsonl", rows)


def toy_trainer(encoder: WavEncoder, rank: int = 0, world: int = 1, barrier: Any = lambda name: None) -> Any:
    module = SimpleNamespace(policy_builder=SimpleNamespace(conditioner=lambda device: encoder))
    strategy = SimpleNamespace(root_device=torch.device("cpu"), barrier=barrier)
    return SimpleNamespace(
        lightning_module=module, strategy=strategy, global_rank=rank, world_size=world, accumulate_grad_batches=1
    )
