"""Makes the bases of the image demos: small pipelines that draw clear shapes but follow their caption in a third.

The VAE learns the world alone. The denoiser then learns from right captions, until its images are clear, and after that
from captions of which most are wrong, until it follows about one in three. What is left for DPO is to follow them all.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch.nn import functional as F

from pl_prefopt.demo.bases import FOLDER, Record, half, replace_folder, write_record
from pl_prefopt.demo.image.data import ShapesDataModule, caption_rows
from pl_prefopt.demo.image.pipelines import PIPELINES
from pl_prefopt.demo.image.report import measure
from pl_prefopt.demo.image.world import ShapesWorld
from pl_prefopt.diffusion.components import TinySource
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.objectives import DenoisingSFT
from pl_prefopt.policies import Diffusion
from pl_prefopt.utilities.digests import json_digest, tensors_digest

SEED = 0
WORLD = ShapesWorld()
SAMPLES, SAMPLER_STEPS = 16, 12
"""Images per caption, and steps of the sampler, when a base is measured."""


@dataclass(frozen=True)
class VAETraining:
    """How the VAE is trained.

    Args:
        images: number of training images, all captions alike often.
        steps: optimizer steps.
        batch_size: images per step.
        lr: highest learning rate.
        kl: weight of the KL to the standard normal distribution, per latent number.
    """

    images: int = 6000
    steps: int = 2500
    batch_size: int = 32
    lr: float = 3e-3
    kl: float = 1e-4


@dataclass(frozen=True)
class Phase:
    """One phase of the denoiser's training.

    Args:
        wrong: probability that a caption is that of another image.
        steps: optimizer steps.
        lr: highest learning rate.
        rows: number of training images.
        batch_size: images per step.
    """

    wrong: float
    steps: int
    lr: float
    rows: int = 6000
    batch_size: int = 64


VAE = VAETraining()
PHASES = {
    "image": (Phase(0.0, 1000, 3e-3), Phase(0.35, 1000, 1.5e-3)),
    "image-sdxl": (Phase(0.0, 1000, 3e-3), Phase(0.35, 1000, 1.5e-3)),
    "image-flow": (Phase(0.0, 3000, 2e-3), Phase(0.35, 1500, 1e-3), Phase(0.6, 600, 1e-3)),
}
"""Name of a base -> the phases of its denoiser's training."""


def make_base(name: str, target: Path | None = None) -> Record:
    """Make a base again and measure it; about five minutes on one core for `image`, and three for the others.

    The others take the VAE of `image`, as it is shipped.

    Args:
        name: image, image-sdxl or image-flow.
        target: folder to replace; None: the shipped base.
    """
    torch.set_num_threads(1)
    target = target or FOLDER / name
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        if name == "image":
            vae = TinySource(name, SEED, PIPELINES[name]).component("vae", torch.float32)
            train_vae(vae, VAE)
            scale = 1 / float(latents(vae, training_images(VAE.images)[:512]).std())
        else:
            vae = Diffusion(pretrained=str(FOLDER / "image")).conditioner().vae
            scale = vae.config.scaling_factor
        write_pipeline(name, vae, scale, folder / "0")
        for number, phase in enumerate(PHASES[name]):
            train_denoiser(folder / str(number), folder / str(number + 1), phase, folder / "cache")
        shipped = folder / "shipped"
        policy = Diffusion(pretrained=str(folder / str(len(PHASES[name]))))
        half(policy.pipeline(policy())).save_pretrained(shipped)
        minutes = round((time.perf_counter() - start) / 60, 1)
        command = f"python -m pl_prefopt.demo make-base {name}"
        measured = measure_base(shipped)
        record = Record(command, minutes, settings_digest(name), data_digest(name), measured)
        write_record(shipped, record)
        replace_folder(shipped, target)
    return record


# ---- what it is made from ------------------------------------------------------------------------------------------


def settings_digest(name: str) -> str:
    """Digest of networks and training settings."""
    phases = [asdict(phase) for phase in PHASES[name]]
    return json_digest([PIPELINES[name], asdict(VAE), phases, SEED, WORLD.size])


def data_digest(name: str) -> str:
    """Digest of images and captions, in 8 bits, of the VAE's training and of the first rows of every phase."""
    tensors = [("vae", eight_bits(training_images(48)))]
    for number, phase in enumerate(PHASES[name]):
        rows = list(caption_rows(WORLD, 48, phase.wrong, np.random.default_rng(SEED)))
        texts = torch.tensor([WORLD.captions.index(row[0]) for row in rows])
        tensors += [(f"{number} images", eight_bits(torch.stack([row[1] for row in rows]))), (f"{number} texts", texts)]
    return tensors_digest(tensors)


def eight_bits(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8."""
    return (images * 255).round().to(torch.uint8)


def training_images(count: int) -> Tensor:
    """(N, 3, S, S) images in [0, 1], all captions in turn."""
    generator = np.random.default_rng(SEED)
    return torch.stack([WORLD.draw(WORLD.captions[i % len(WORLD.captions)], generator) for i in range(count)])


# ---- training ------------------------------------------------------------------------------------------------------


def train_vae(vae: Any, training: VAETraining) -> None:
    """Train the VAE in place on the squared and absolute error of the reconstruction, and the KL."""
    torch.manual_seed(SEED)
    images = training_images(training.images) * 2 - 1
    vae.requires_grad_(True)
    optimizer = torch.optim.AdamW(vae.parameters(), training.lr, (0.9, 0.95), weight_decay=0.0, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=training.steps, pct_start=0.05)
    for _ in range(training.steps):
        x = images[torch.randint(len(images), (training.batch_size,))]
        posterior = vae.encode(x).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * torch.randn(posterior.mean.shape)).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.mse_loss(decoded, x) + 0.3 * F.l1_loss(decoded, x) + training.kl * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        rate.step()
    vae.requires_grad_(False)


@torch.no_grad()
def latents(vae: Any, images: Tensor) -> Tensor:
    """Means of the latent posterior of images in [0, 1], unscaled."""
    return vae.encode(images * 2 - 1).latent_dist.mean


def write_pipeline(name: str, vae: Any, scale: float, folder: Path) -> None:
    """Write the pipeline of a base around this VAE; denoiser and text encoders have random weights."""
    source = TinySource(name, SEED, PIPELINES[name])
    pipe = source.pipeline(torch.float32, source.component(source.kind.denoiser, torch.float32))
    if vae is not None:
        pipe.vae.load_state_dict(vae.state_dict())
        pipe.vae.register_to_config(scaling_factor=scale)
    pipe.save_pretrained(folder)


def train_denoiser(source: Path, target: Path, phase: Phase, cache: Path) -> None:
    """Train the denoiser of the pipeline in `source` for one phase; writes the whole pipeline to `target`."""
    pl.seed_everything(SEED, verbose=False)
    module = ImagePreferenceModule(
        policy=Diffusion(pretrained=str(source)),
        objective=DenoisingSFT(),
        optimizer=partial(torch.optim.AdamW, lr=phase.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        lr_scheduler=partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=phase.lr, total_steps=phase.steps, pct_start=0.05
        ),
        seed=SEED,
    )
    data = ShapesDataModule(
        labels=False, rows=phase.rows, eval_rows=1, wrong=phase.wrong, world=WORLD, batch_size=phase.batch_size,
        seed=SEED, cache_dir=str(cache),
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=phase.steps, max_epochs=-1, gradient_clip_val=1.0, limit_val_batches=0,
        num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[TQDMProgressBar(refresh_rate=25)], default_root_dir=str(cache),
    )  # fmt: skip
    trainer.fit(module, data)
    policy: Any = module.policy_builder
    policy.pipeline(module.policy).save_pretrained(target)


# ---- what it can do ------------------------------------------------------------------------------------------------


def measure_base(folder: Path) -> dict[str, float]:
    """Shares of images with the caption's colour, shape and both, and of clear ones, at fixed seeds."""
    module = ImagePreferenceModule(policy=Diffusion(pretrained=str(folder)), objective=DenoisingSFT())
    module.setup("fit")
    images = module.sample(WORLD.captions, SAMPLES, SEED, steps=SAMPLER_STEPS, guidance=1.0, batch_size=64,
                           size=(WORLD.size, WORLD.size))  # fmt: skip
    values = measure(WORLD, images, images)
    return {name: round(values[name], 4) for name in ("colour", "shape", "both", "clear", "clarity")}
