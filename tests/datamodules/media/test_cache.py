from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pl_prefopt.datamodules import Geometry, ImagePreferenceDataModule
from pl_prefopt.datamodules.image.geometry import MOVED
from pl_prefopt.datamodules.image.rows import ImagePairs
from pl_prefopt.datamodules.media import cache as media_cache
from pl_prefopt.utilities.seeding import keyed_generator
from tests.datamodules.sample_files import copy_of, write_jsonl
from tests.datamodules.sample_images import image_folder, noise


class Encoder:
    """A frozen side whose latents are means of 2 x 2 pixels; `after` images it fails, `scale` makes them large."""

    factor = 2

    def __init__(self, name: str = "vae", after: int = 10**9, scale: float = 1.0) -> None:
        self.name, self.after, self.scale = name, after, scale
        self.images = 0
        self.texts: list[str] = []

    def encode_text(self, captions: list[str]) -> Mapping[str, Tensor]:
        self.texts += captions
        rows = [torch.randn(3, 4, generator=keyed_generator(c)) for c in captions]
        return {"prompt_embeds": torch.stack(rows), "pooled": torch.stack([r[0] for r in rows])}

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.images += len(pixels)
        if self.images > self.after:
            raise KeyboardInterrupt
        mean = torch.nn.functional.avg_pool2d(pixels, 2) * self.scale
        return mean, mean.abs() / 10

    def fingerprint(self) -> str:
        return self.name


def trainer(encoder: Encoder, barrier: Callable[[str], None] = lambda name: None, rank: int = 0, world: int = 1) -> Any:
    module = SimpleNamespace(policy_builder=SimpleNamespace(conditioner=lambda device: encoder))
    strategy = SimpleNamespace(root_device=torch.device("cpu"), barrier=barrier)
    return SimpleNamespace(
        lightning_module=module, strategy=strategy, global_rank=rank, world_size=world, accumulate_grad_batches=1
    )


def images(path: Path, **options: Any) -> ImagePreferenceDataModule:
    geometry = {name: options.pop(name) for name in MOVED if name in options}
    return ImagePreferenceDataModule(str(path), geometry=Geometry(**geometry), **options)


def ready(path: Path, encoder: Encoder | None, **options: Any) -> ImagePreferenceDataModule:
    given: dict[str, Any] = {"resolution": [12, 16], "batch_size": 2, "cache_dir": str(path.parent / "cache")}
    data = images(path, **(given | options))
    if encoder is not None:
        data.trainer = trainer(encoder)
    data.setup("fit")
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "data", 4)


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 0.5, "caption_dropout": 0.3},
        {"crop": "shared-random", "flip": 0.5, "resolution": 12},
        {"crop": "pad", "resolution": 16},
        {"buckets": [[12, 16], [16, 12]]},
    ],
)
def test_cached_is_uncached_for_the_same_posterior_sample(path: Path, options: dict[str, Any]) -> None:
    noise(77, 30, 20).save(path.parent / "good1.png")
    encoder = Encoder()
    cached = ready(path, encoder, **options).datasets["train"]
    plain = ready(path, None, **options).datasets["train"]
    for epoch in range(3):
        cached.set_epoch(epoch)
        plain.set_epoch(epoch)
        for i in range(len(plain)):
            one, two = cached[i], plain[i]
            mean, std = encoder.encode(two["pixels"])
            eps = torch.randn(mean.shape, generator=keyed_generator(epoch, i))
            assert torch.equal(one["latents_mean"] + one["latents_std"] * eps, mean + std * eps)
            text = encoder.encode_text([two["caption"]])
            assert torch.equal(one["prompt_embeds"], text["prompt_embeds"][0])
            assert torch.equal(one["pooled"], text["pooled"][0])
            assert one["caption"] == two["caption"]
            assert torch.equal(one["time_ids"], two["time_ids"])
            assert "pixels" not in one


def test_batches_with_a_cache_hold_the_contract(path: Path) -> None:
    batch = next(iter(ready(path, Encoder()).train_dataloader()))
    assert batch["latents_mean"].shape == batch["latents_std"].shape == (2, 2, 3, 6, 8)
    assert (batch["prompt_embeds"].shape, batch["pooled"].shape) == ((2, 3, 4), (2, 4))
    assert batch.keys() == {"latents_mean", "latents_std", "prompt_embeds", "pooled", "caption", "time_ids", "index"}


def test_every_image_and_caption_is_encoded_once(path: Path) -> None:
    rows = [
        {"prompt": "same", "image_path": ["good0.png", "bad0.png", "good1.png"], "rank": [1, 2, 3]},
        {"prompt": "same", "image_path": ["good0.png", "bad1.png"], "rank": [1, 2]},
    ]
    ranked = write_jsonl(path.parent / "ranked.jsonl", rows)
    encoder = Encoder()
    assert len(ready(ranked, encoder, flip=0.5).datasets["train"]) == 4
    assert encoder.images == 4 * 2
    assert encoder.texts == ["", "same"]
    again = Encoder()
    ready(ranked, again, flip=0.5, val=copy_of(ranked))
    assert (again.images, again.texts) == (0, [])


def test_a_killed_run_goes_on_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_cache, "MEDIA_PER_SHARD", 3)
    with pytest.raises(KeyboardInterrupt):
        ready(path, Encoder(after=7), encode_batch_size=2)
    encoder = Encoder()
    rows = ready(path, encoder, encode_batch_size=2).datasets["train"]
    assert encoder.images == 8 - 6
    assert encoder.texts == []
    assert all(rows[i]["latents_mean"].shape == (2, 3, 6, 8) for i in range(4))


def test_ranks_share_the_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_cache, "MEDIA_PER_SHARD", 2)
    encoders = [Encoder(), Encoder()]
    data = images(path, resolution=[12, 16], cache_dir=str(path.parent / "cache"))

    def other_rank(name: str) -> None:
        """At rank 0's first barrier rank 1 does its part, up to the second barrier."""
        if name.endswith("opened"):
            second = images(path, resolution=[12, 16], cache_dir=str(path.parent / "cache"))
            second.trainer = trainer(encoders[1], stop, 1, 2)
            with pytest.raises(InterruptedError):
                second.setup("fit")

    def stop(name: str) -> None:
        if name.endswith("filled"):
            raise InterruptedError

    data.trainer = trainer(encoders[0], other_rank, 0, 2)
    data.setup("fit")
    assert [e.images for e in encoders] == [4, 4]
    assert data.datasets["train"][3]["latents_std"].shape == (2, 3, 6, 8)


@pytest.mark.parametrize(
    ("encoder", "options", "words"),
    [
        (Encoder("other"), {}, "another VAE and text encoders .*cached 'vae', now 'other'"),
        (Encoder(), {"resolution": 8}, r"another resolution \(resolution: cached \[\[12, 16\]\], now \[\[8, 8\]\]"),
        (Encoder(), {"cache_dtype": "bfloat16"}, "another dtype"),
        (Encoder(), {"crop": "pad"}, "another crop"),
    ],
)
def test_a_cache_of_other_settings_is_refused_by_name(
    path: Path, encoder: Encoder, options: dict[str, Any], words: str
) -> None:
    ready(path, Encoder())
    with pytest.raises(ValueError, match=words):
        ready(path, encoder, **options)
    ready(path, Encoder(), flip=0.5, seed=3, batch_size=1)


def test_without_a_named_folder_each_setting_has_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_PREFOPT_CACHE", str(path.parent / "home"))
    for resolution in (8, 16, 8):
        encoder = Encoder()
        ready(path, encoder, cache_dir=None, resolution=resolution)
    assert encoder.images == 0
    assert len(list((path.parent / "home" / "images" / "encoded").iterdir())) == 2


def test_sizes_that_the_vae_would_round_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"multiples of 2.*, got 13 x 16 pixels .* nearest is 12 x 16"):
        ready(path, Encoder(), resolution=[13, 16])


def test_latents_that_are_not_finite_name_the_row_and_float32(path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 1: .*not finite in torch.float16.*float32"):
        ready(path, Encoder(scale=1e6), cache_dtype="float16")


def test_new_crops_every_epoch_cannot_be_cached(path: Path) -> None:
    with pytest.raises(ValueError, match=r"crop_variants must be >= 1 .*, got 0"):
        ready(path, Encoder(), crop="shared-random", crop_variants=0)
    assert "pixels" in ready(path, Encoder(), crop="shared-random", crop_variants=0, cache=False).datasets["train"][0]


def test_stored_in_half_read_in_full(path: Path) -> None:
    half = ready(path, Encoder(), cache_dtype="bfloat16").datasets["train"][0]["latents_mean"]
    full = ready(path, Encoder(), cache_dir=str(path.parent / "full")).datasets["train"][0]["latents_mean"]
    assert half.dtype == torch.float32
    assert torch.equal(half, full.bfloat16().float())


def test_workers_read_the_cache(path: Path) -> None:
    data = ready(path, Encoder(), num_workers=1)
    rows: ImagePairs = pickle.loads(pickle.dumps(data.datasets["train"]))
    for batch in data.train_dataloader():
        for i, index in enumerate(batch["index"].tolist()):
            assert torch.equal(batch["latents_mean"][i], rows[index]["latents_mean"])


def test_a_broken_shard_is_named(path: Path) -> None:
    ready(path, Encoder())
    shard = next((path.parent / "cache" / "encoded" / "latents").iterdir())
    shard.with_name("0.safetensors").write_bytes(shard.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"0.safetensors must be safetensors, got .*Delete it"):
        ready(path, Encoder())


def test_captions_that_are_read_only_in_part_are_counted(path: Path) -> None:
    class Short(Encoder):
        def cut_captions(self, captions: list[str]) -> int:
            return sum(len(caption) > 8 for caption in captions)

    with pytest.warns(UserWarning, match="3 captions are longer than the text encoders read"):
        ready(path, Short())


def test_pipelines_count_the_captions_that_they_cut() -> None:
    pytest.importorskip("diffusers")
    from pl_prefopt.policies import Diffusion

    conditioner = Diffusion(tiny="sd").conditioner()
    assert conditioner.cut_captions(["a cat", "a cat " * 100_000]) == 1


def test_sizes_that_the_network_cannot_take_are_refused_before_anything_is_encoded(path: Path) -> None:
    encoder = Encoder()
    data = images(path, resolution=[10, 16], cache_dir=str(path.parent / "cache"))
    fake = trainer(encoder)
    fake.lightning_module.policy_builder.family = lambda: SimpleNamespace(multiple=2)
    data.trainer = fake
    with pytest.raises(ValueError, match="resolution must be multiples of 4, which this model's VAE and network need"):
        data.setup("fit")
    assert (encoder.images, encoder.texts) == (0, [])
