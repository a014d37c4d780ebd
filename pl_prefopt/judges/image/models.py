"""Judges of images with a CLIP network: agreement with the caption, aesthetics.

Networks are loaded at the first call. Samples are images (3, H, W) in [0, 1], each of its own size; the network's own
preprocessing receives them in 8 bits, as it would from files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.image.batches import in_batches
from pl_prefopt.utilities.checks import integer
from pl_prefopt.utilities.devices import default_device
from pl_prefopt.utilities.dtypes import dtype_named

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class OpenCLIP(Judge):
    """Cosine of image and caption under a model of open_clip.

    HPSv2 (2306.09341) is this class with model="ViT-H-14" and `pretrained` the path of HPS_v2_compressed.pt. It sees
    the whole image, scaled to its longest side and padded with black, where CLIP crops the centre.

    Args:
        model: name of open_clip, or "local-dir:FOLDER" with open_clip_config.json and weights.
        pretrained: name of its weights, or a file; None for a folder.
        batch_size: images per forward pass.
        device: where it runs; None: a GPU if there is one.
        padded: True scales to the longest side and pads with black, False crops as the network's configuration says;
            None pads for weights whose file name begins with HPS, as HPSv2 was trained.

    Raises:
        ValueError: batch_size < 1.
    """

    model: str = "ViT-H-14"
    pretrained: str | None = "laion2b_s32b_b79k"
    batch_size: int = 16
    device: str | None = None
    padded: bool | None = None

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size)

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) in [-1, 1]."""
        return in_batches(self._cosines, conditions, samples, self.batch_size)

    def _cosines(self, captions: list[str], images: list[Image]) -> Tensor:
        model, transform, tokenizer = self._network
        device = next(model.parameters()).device
        image_features = model.encode_image(torch.stack([transform(i) for i in images]).to(device), normalize=True)
        text_features = model.encode_text(tokenizer(captions).to(device), normalize=True)
        return (image_features * text_features).sum(-1)

    def resizing(self) -> dict[str, Any]:
        """Return what differs from the network's own preprocessing, as arguments of open_clip."""
        hpsv2 = Path(self.pretrained or "").name.startswith("HPS")
        padded = hpsv2 if self.padded is None else self.padded
        return {"image_resize_mode": "longest", "image_interpolation": "bicubic"} if padded else {}

    @cached_property
    def _network(self) -> tuple[Any, Any, Any]:  # open_clip has no types
        import open_clip

        model, _, transform = open_clip.create_model_and_transforms(
            self.model,
            pretrained=self.pretrained,
            device=default_device(self.device),
            weights_only=True,
            **self.resizing(),
        )
        return model.eval(), transform, open_clip.get_tokenizer(self.model)


@dataclass
class PickScore(Judge):
    """Cosine of image and caption under a transformers CLIP model, without its logit scale (2305.01569).

    Args:
        pretrained: hub name or folder of the model.
        processor: hub name or folder of its processor; None: that of the model.
        batch_size: images per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: batch_size < 1, an unknown dtype.
    """

    pretrained: str = "yuvalkirstain/PickScore_v1"
    processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    batch_size: int = 16
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size)
        dtype_named(self.dtype)

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) in [-1, 1]."""
        return in_batches(self._cosines, conditions, samples, self.batch_size)

    def _cosines(self, captions: list[str], images: list[Image]) -> Tensor:
        model, processor = self._network
        inputs = processor(images=images, text=captions, return_tensors="pt", padding=True, truncation=True)
        output = model(**inputs.to(model.device, model.dtype))
        return F.cosine_similarity(output.image_embeds.float(), output.text_embeds.float())

    @cached_property
    def _network(self) -> tuple[Any, Any]:  # transformers' own types do not allow what its documentation shows
        from transformers import CLIPModel, CLIPProcessor

        model: Any = CLIPModel.from_pretrained(self.pretrained, dtype=dtype_named(self.dtype), use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(self.processor or self.pretrained)
        return model.eval().to(default_device(self.device)), processor


@dataclass
class Aesthetic(Judge):
    """A head of linear layers on the L2-normalised CLIP embedding of the image; the caption is ignored.

    LAION's predictor (768-1024-128-64-16-1, no activations) is `head` = its weights sac+logos+ava1-l14-linearMSE.

    Args:
        head: file of the head's weights, safetensors or a PyTorch state dict, keys that end in "<n>.weight".
        pretrained: hub name or folder of a CLIP vision model with projection.
        batch_size: images per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: batch_size < 1, an unknown dtype; at the first call, layers that do not fit each other or CLIP.
    """

    head: str
    pretrained: str = "openai/clip-vit-large-patch14"
    batch_size: int = 16
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size)
        dtype_named(self.dtype)

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) rating, about 1 to 10 for LAION's head."""
        return in_batches(self._ratings, conditions, samples, self.batch_size)

    def _ratings(self, captions: list[str], images: list[Image]) -> Tensor:
        model, processor, layers = self._network
        pixels = processor(images=images, return_tensors="pt").pixel_values
        embeddings = model(pixel_values=pixels.to(model.device, model.dtype)).image_embeds.float()
        features = F.normalize(embeddings, dim=-1).cpu()
        for weight, bias in layers:
            features = F.linear(features, weight, bias)
        return features[:, 0]

    @cached_property
    def _network(self) -> tuple[Any, Any, list[tuple[Tensor, Tensor]]]:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        model: Any = CLIPVisionModelWithProjection.from_pretrained(
            self.pretrained, dtype=dtype_named(self.dtype), use_safetensors=True
        )
        layers = linear_layers(Path(self.head), model.config.projection_dim)
        processor = CLIPImageProcessor.from_pretrained(self.pretrained)
        return model.eval().to(default_device(self.device)), processor, layers


def linear_layers(path: Path, size: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of a chain of linear layers `size` -> ... -> 1, in the order of their numbers.

    Raises:
        ValueError: no such file, or layers that do not fit.
    """
    if not path.is_file():
        raise ValueError(f"head must be the file of the head's weights, got {str(path)!r}, which does not exist")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    names = sorted((k[: -len(".weight")] for k in state if k.endswith(".weight")), key=lambda n: int(n.split(".")[-1]))
    layers = [(state[f"{n}.weight"].float(), state[f"{n}.bias"].float()) for n in names]
    sizes = [size, *(len(bias) for _, bias in layers)]
    shapes = [tuple(weight.shape) for weight, _ in layers]
    if not layers or sizes[-1] != 1 or shapes != list(zip(sizes[1:], sizes[:-1], strict=True)):
        raise ValueError(
            f"head must hold linear layers that lead from the {size} numbers of the CLIP embedding to 1, got {shapes} "
            f"in {path.name}"
        )
    return layers
