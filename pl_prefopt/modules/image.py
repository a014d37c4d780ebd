"""`ImagePreferenceModule`: diffusion and flow models of images on preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pl_prefopt.diffusion.sampling import draw_images
from pl_prefopt.modules.diffusion import DiffusionPreferenceModule
from pl_prefopt.modules.evaluation import Batch


class ImagePreferenceModule(DiffusionPreferenceModule):
    """Preference optimization of an image denoiser: `DiffusionPreferenceModule` with sampling of images.

    The policy is e.g. `Diffusion(pretrained="stabilityai/stable-diffusion-xl-base-1.0", lora={"r": 8})`; a batch
    without cached latents has `pixels` (B, K, 3, H, W) in [-1, 1]. All arguments are those of the base class.
    """

    sample_key: ClassVar[str] = "pixels"

    def sample(
        self,
        conditions: Sequence[str],
        count: int = 1,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 5.0,
        size: tuple[int, int] | None = None,
        batch_size: int = 16,
    ) -> Tensor:
        """(N, count, 3, H, W) images in [0, 1], the same for the same seed, whatever is drawn beside them.

        Options are those of `pl_prefopt.diffusion.sampling.draw_images`; size None is that of the datamodule's images.
        """
        return draw_images(
            self.family, self.policy, self.conditioner(), conditions, count=count, seed=seed, steps=steps,
            guidance=guidance, size=(size[0], size[1]) if size else self._size(), batch_size=batch_size,
        )  # fmt: skip

    def _size(self) -> tuple[int, int] | None:
        """Height and width of the datamodule's images, where there is a datamodule that says so."""
        datamodule: Any = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        sizes = getattr(getattr(datamodule, "geometry", None), "sizes", None)
        return tuple(sizes[0]) if sizes else None

    def preview(self, conditions: Sequence[str], seed: int) -> Tensor:
        """One image per caption, (N, 3, H, W) in [0, 1]."""
        with self.trainer.precision_plugin.forward_context():
            return self.sample(conditions, 1, seed, **self.sampling)[:, 0]

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Row ids and one image per caption, uint8 (B, 3, H, W)."""
        images = self.sample(batch["caption"], 1, self.seed, **self.sampling)[:, 0]
        return {"index": batch["index"], "picture": (images * 255).round().to(torch.uint8)}
