"""Judges that hold a CLIP, on tiny random models, against one image at a time in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pl_prefopt.judges import Aesthetic, Judge, OpenCLIP, PickScore, judged
from pl_prefopt.judges.image.models import linear_layers

CAPTIONS = ["a cat", "a cup of coffee on a table", "noise"]
SIZE = 8


def images() -> list[Tensor]:
    from skimage import data

    result = [
        torch.from_numpy(getattr(data, n)()[:40, :50].copy()).permute(2, 0, 1) / 255 for n in ("chelsea", "coffee")
    ]
    return [*result, torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))]


def pil(sample: Tensor) -> Image.Image:
    return Image.fromarray(np.round(sample.numpy() * 255).astype(np.uint8).transpose(1, 2, 0))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from pl_prefopt.diffusion.tiny import tiny_component

    folder = tmp_path_factory.mktemp("clip")
    tokenizer: Any = tiny_component("sd", "tokenizer", 0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 2}
    config = CLIPConfig(
        text_config={**sizes, **ids, "vocab_size": len(tokenizer), "projection_dim": SIZE},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": SIZE},
        projection_dim=SIZE,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder)
    image = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is an optional package")
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    settings = {"embed_dim": SIZE, "vision_cfg": vision, "text_cfg": text}
    config = {"model_cfg": settings, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.CLIP(SIZE, vision, text)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers of the layers as in LAION's file, dropout between them left out."""
    rng = torch.Generator().manual_seed(3)
    sizes, places = [SIZE, 12, 6, 5, 4, 1], [0, 2, 4, 6, 7]
    state = {}
    for place, before, after in zip(places, sizes[:-1], sizes[1:], strict=True):
        state[f"layers.{place}.weight"] = torch.randn(after, before, generator=rng)
        state[f"layers.{place}.bias"] = torch.randn(after, generator=rng)
    path = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(dict(reversed(state.items())), path)
    return path


def test_pick_score_is_the_cosine_of_one_picture_and_its_caption(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor: Any = CLIPProcessor.from_pretrained(clip_folder)
    expected = []
    for caption, sample in zip(CAPTIONS, images(), strict=True):
        with torch.no_grad():
            result = model(**processor(images=pil(sample), text=[caption], return_tensors="pt"))
        expected.append(cosine(result.image_embeds[0].numpy(), result.text_embeds[0].numpy()))
    for size in (1, 2, 16):
        judge = PickScore(str(clip_folder), processor=None, batch_size=size)
        assert judged(judge, CAPTIONS, images()).tolist() == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.01
    swapped = judged(PickScore(str(clip_folder), processor=None), CAPTIONS[::-1], images())
    assert abs(float(swapped[0]) - expected[0]) > 1e-3


def test_aesthetic_is_the_head_on_the_normalised_embedding(clip_folder: Path, head: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    state = {k: v.double().numpy() for k, v in torch.load(head, weights_only=True).items()}
    expected = []
    for sample in images():
        with torch.no_grad():
            x = model(**processor(images=pil(sample), return_tensors="pt")).image_embeds[0].double().numpy()
        x = x / np.linalg.norm(x)
        for place in (0, 2, 4, 6, 7):
            x = state[f"layers.{place}.weight"] @ x + state[f"layers.{place}.bias"]
        expected.append(x[0])
    for size in (2, 16):
        judge = Aesthetic(str(head), str(clip_folder), batch_size=size)
        assert judged(judge, CAPTIONS, images()).tolist() == pytest.approx(expected, rel=1e-4)
    assert np.std(expected) > 0.01


def test_open_clip_is_the_cosine_of_one_picture_and_its_caption(open_clip_folder: Path) -> None:
    import open_clip

    name = f"local-dir:{open_clip_folder}"
    built: Any = open_clip.create_model_and_transforms(name)
    model, _, transform = built
    tokenizer = open_clip.get_tokenizer(name)
    expected = []
    with torch.no_grad():
        for caption, sample in zip(CAPTIONS, images(), strict=True):
            seen = model.eval().encode_image(transform(pil(sample))[None])[0].numpy()
            expected.append(cosine(seen, model.encode_text(tokenizer([caption]))[0].numpy()))
    for size in (2, 16):
        judge = OpenCLIP(name, pretrained=None, batch_size=size)
        assert judged(judge, CAPTIONS, images()).tolist() == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 1e-3


def test_hpsv2_sees_the_whole_image(open_clip_folder: Path, tmp_path: Path) -> None:
    """Its weights were trained on images padded with black; their edges count, which CLIP's crop cuts off."""
    import shutil

    weights = tmp_path / "HPS_v2_compressed.pt"
    shutil.copy(open_clip_folder / "open_clip_pytorch_model.bin", weights)
    plain = torch.full((3, 32, 96), 0.5)
    edged = plain.clone()
    edged[:, :, :24] = 1.0
    name = f"local-dir:{open_clip_folder}"
    scores = {
        padded: judged(OpenCLIP(name, pretrained=None, padded=padded), ["a", "a"], [plain, edged])
        for padded in (None, True, False)
    }
    assert scores[False][0] == scores[False][1]
    assert scores[True][0] != scores[True][1]
    assert torch.equal(scores[None], scores[False])
    transform = OpenCLIP("ViT-B-32", pretrained=str(weights)).resizing()
    assert transform == {"image_resize_mode": "longest", "image_interpolation": "bicubic"}
    assert OpenCLIP("ViT-B-32", pretrained="openai").resizing() == {}


def test_pictures_out_of_range_are_refused(clip_folder: Path) -> None:
    judge = PickScore(str(clip_folder), processor=None, batch_size=1)
    for bad in (torch.full((3, 8, 8), 1.5), torch.full((3, 8, 8), float("nan")), torch.rand(8, 8)):
        with pytest.raises(ValueError, match=r"sample 1 must be an image \(3, H, W\), finite, in \[0, 1\], got"):
            judged(judge, ["", ""], [torch.rand(3, 8, 8), bad])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: OpenCLIP(batch_size=0), "batch_size must be an integer >= 1, got 0"),
        (lambda: PickScore(dtype="int8"), "dtype must be one of .*'int8'"),
        (lambda: linear_layers(Path("nowhere.pth"), 8), "head must be the file .* got 'nowhere.pth'"),
    ],
)
def test_refusals(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]


def test_a_head_for_another_clip_is_refused(head: Path) -> None:
    with pytest.raises(ValueError, match="that lead from the 9 numbers"):
        linear_layers(head, 9)
    assert [tuple(w.shape) for w, _ in linear_layers(head, SIZE)] == [(12, 8), (6, 12), (5, 6), (4, 5), (1, 4)]


def test_judges_are_plain_values() -> None:
    from pl_prefopt.utilities.configurable import from_config, to_config

    judge = Aesthetic("head.pth", batch_size=3)
    assert from_config(to_config(judge), Judge) == judge
