"""First stage of the image demos: a small VAE learns the shapes world; pipelines around it are written as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pl_prefopt.demo.image.world import ShapesWorld

KINDS = ("shapes", "shapes-xl", "shapes-flow")


class ShapesPictures(pl.LightningDataModule):
    """Pictures of the shapes world, all captions alike often, in [-1, 1].

    Args:
        world: the world.
        count: number of pictures.
        batch_size: pictures per step.
        seed: seed of places, sizes and order.
    """

    def __init__(
        self,
        world: ShapesWorld = ShapesWorld(),  # noqa: B008
        count: int = 4096,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.world, self.count, self.batch_size, self.seed = world, count, batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled pictures (B, 3, S, S)."""
        rng = np.random.default_rng(self.seed)
        captions = self.world.captions
        drawn = [self.world.draw(captions[i % len(captions)], rng) for i in range(self.count)]
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(TensorDataset(torch.stack(drawn) * 2 - 1), self.batch_size, shuffle=True, generator=order)


class ShapesVAE(pl.LightningModule):
    """Trains the VAE of the image demos and writes untrained pipelines around it, which the next stage trains.

    Args:
        export: folder; gets one sub-folder per kind of `pl_prefopt.diffusion.tiny.TINY` in `kinds`.
        kinds: which pipelines to write.
        lr: highest learning rate of AdamW; it falls linearly to 0.
        kl: weight of the KL to the standard normal distribution, per latent number.
        steps: optimizer steps over which the rate falls; give the trainer's `max_steps`.
        seed: of the weights.
    """

    def __init__(
        self, export: str, kinds: list[str] | None = None, lr: float = 3e-3, kl: float = 1e-4, steps: int = 400,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        from pl_prefopt.diffusion.tiny import tiny_component

        self.folder, self.kinds, self.lr, self.kl, self.steps, self.seed = export, kinds or KINDS, lr, kl, steps, seed
        vae: Any = tiny_component(self.kinds[0], "vae", seed)
        self.vae = vae.requires_grad_(True)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Squared and absolute error of the reconstruction, and the KL."""
        (x,) = batch
        posterior = self.vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape)
        made = self.vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.mse_loss(made, x) + 0.3 * F.l1_loss(made, x) + self.kl * kl
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, warmed up over 20 steps."""
        optimizer = torch.optim.AdamW(self.vae.parameters(), self.lr, (0.9, 0.95), weight_decay=0.0, fused=True)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / 20, max(0.03, 1 - n / self.steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def on_fit_end(self) -> None:
        """Measure the scale of the latents and write the pipelines."""
        if self.trainer.is_global_zero:
            (x,) = next(iter(self.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
            with torch.no_grad():
                scale = 1 / float(self.vae.encode(x).latent_dist.mean.std())
            for kind in self.kinds:
                write_pipeline(kind, self.vae, scale, Path(self.folder) / kind, self.seed)


def write_pipeline(kind: str, vae: Any, scale: float, folder: Path, seed: int) -> None:
    """Write a pipeline of a kind with this VAE; denoiser and text encoders have random weights."""
    from pl_prefopt.diffusion.components import TinySource

    source = TinySource(kind, seed)
    pipe = source.pipeline(torch.float32, source.component(source.kind.denoiser, torch.float32))
    pipe.vae.load_state_dict(vae.state_dict())
    pipe.vae.register_to_config(scaling_factor=scale)
    pipe.save_pretrained(folder)
