"""Judges of pictures that hold a CLIP: agreement with the caption, taste.

Networks are loaded at the first call. Samples are pictures (3, H, W) in [0, 1], each of its own size; they are handed
to the network's own preprocessing in 8 bits, as files would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pl_prefopt.judges.base import Judge
from pl_prefopt.judges.image.batches import at_least_one, device_or_gpu, in_batches, known_dtype
from pl_prefopt.utilities.dtypes import DTYPES


class OpenCLIP(Judge):
    """Cosine of picture and caption under a model of open_clip.

    HPSv2 (2306.09341) is this class with model="ViT-H-14" and `pretrained` the path of HPS_v2_compressed.pt.

    Args:
        model: name of open_clip, or "local-dir:FOLDER" with open_clip_config.json and weights.
        pretrained: name of its weights, or a file; None for a folder.
        batch_size: pictures per forward pass.
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: batch_size < 1.
    """

    def __init__(
        self, model: str = "ViT-H-14", pretrained: str | None = "laion2b_s32b_b79k", batch_size: int = 16,
        device: str | None = None,
    ) -> None:  # fmt: skip
        self.model, self.pretrained, self.device = model, pretrained, device
        self.batch_size = at_least_one(batch_size)
        self._loaded: tuple[Any, Any, Any] | None = None

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) in [-1, 1]."""
        return in_batches(self._cosines, conditions, samples, self.batch_size)

    def _cosines(self, captions: list[str], pictures: list[Any]) -> Tensor:
        model, transform, tokenizer = self._load()
        device = next(model.parameters()).device
        seen = model.encode_image(torch.stack([transform(p) for p in pictures]).to(device), normalize=True)
        told = model.encode_text(tokenizer(captions).to(device), normalize=True)
        return (seen * told).sum(-1)

    def _load(self) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            import open_clip

            model, _, transform = open_clip.create_model_and_transforms(
                self.model, pretrained=self.pretrained, device=device_or_gpu(self.device), weights_only=True
            )
            self._loaded = model.eval(), transform, open_clip.get_tokenizer(self.model)
        return self._loaded


class PickScore(Judge):
    """Cosine of picture and caption under a transformers CLIP model, without its logit scale (2305.01569).

    Args:
        pretrained: hub name or folder of the model.
        processor: of its processor; None: that of the model.
        batch_size: pictures per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: batch_size < 1, an unknown dtype.
    """

    def __init__(
        self,
        pretrained: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        batch_size: int = 16,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        self.pretrained, self.processor, self.device = pretrained, processor, device
        self.batch_size, self.dtype = at_least_one(batch_size), known_dtype(dtype)
        self._loaded: tuple[Any, Any] | None = None

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) in [-1, 1]."""
        return in_batches(self._cosines, conditions, samples, self.batch_size)

    def _cosines(self, captions: list[str], pictures: list[Any]) -> Tensor:
        model, processor = self._load()
        given = processor(images=pictures, text=captions, return_tensors="pt", padding=True, truncation=True)
        found = model(**given.to(model.device, model.dtype))
        return F.cosine_similarity(found.image_embeds.float(), found.text_embeds.float())

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import CLIPModel, CLIPProcessor

            model = CLIPModel.from_pretrained(self.pretrained, dtype=DTYPES[self.dtype], use_safetensors=True)
            processor = CLIPProcessor.from_pretrained(self.processor or self.pretrained)
            self._loaded = model.eval().to(device_or_gpu(self.device)), processor  # pyright: ignore[reportArgumentType]
        return self._loaded


class Aesthetic(Judge):
    """A head of linear layers on the L2-normalised CLIP embedding of the picture; the caption plays no part.

    LAION's predictor (768-1024-128-64-16-1, no activations) is `head` = its weights sac+logos+ava1-l14-linearMSE.

    Args:
        head: file of the head's weights, safetensors or a PyTorch state dict, keys that end in "<n>.weight".
        pretrained: hub name or folder of a CLIP vision model with projection.
        batch_size: pictures per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: where it runs; None: a GPU if there is one.

    Raises:
        ValueError: batch_size < 1, an unknown dtype; at the first call, layers that do not fit each other or CLIP.
    """

    def __init__(
        self,
        head: str,
        pretrained: str = "openai/clip-vit-large-patch14",
        batch_size: int = 16,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        self.head, self.pretrained, self.device = head, pretrained, device
        self.batch_size, self.dtype = at_least_one(batch_size), known_dtype(dtype)
        self._loaded: tuple[Any, Any, list[tuple[Tensor, Tensor]]] | None = None

    def score(self, conditions: Sequence[str], samples: Sequence[Tensor]) -> Tensor:
        """(B,) rating, about 1 to 10 for LAION's head."""
        return in_batches(self._ratings, conditions, samples, self.batch_size)

    def _ratings(self, captions: list[str], pictures: list[Any]) -> Tensor:
        model, processor, layers = self._load()
        pixels = processor(images=pictures, return_tensors="pt").pixel_values
        out = F.normalize(model(pixel_values=pixels.to(model.device, model.dtype)).image_embeds.float(), dim=-1).cpu()
        for weight, bias in layers:
            out = F.linear(out, weight, bias)
        return out[:, 0]

    def _load(self) -> tuple[Any, Any, list[tuple[Tensor, Tensor]]]:
        if self._loaded is None:
            from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

            model: Any = CLIPVisionModelWithProjection.from_pretrained(
                self.pretrained, dtype=DTYPES[self.dtype], use_safetensors=True
            )
            layers = linear_layers(Path(self.head), model.config.projection_dim)
            processor = CLIPImageProcessor.from_pretrained(self.pretrained)
            self._loaded = model.eval().to(device_or_gpu(self.device)), processor, layers
        return self._loaded


def linear_layers(path: Path, size: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of a chain of linear layers `size` -> ... -> 1, in the order of their numbers.

    Raises:
        ValueError: no such file, or layers that do not fit.
    """
    if not path.is_file():
        raise ValueError(f"head: {str(path)!r} does not exist; give the file of the head's weights")
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
            f"head: {path.name} holds linear layers of shapes {shapes}; they must lead from the {size} numbers of the "
            "CLIP embedding to 1"
        )
    return layers
