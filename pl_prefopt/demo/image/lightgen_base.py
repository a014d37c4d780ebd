"""Makes the base of the self-play demos: a small masked autoregressive model and the encoders that it reads.

Its first stage is the demo image-lightgen-base; here its result is put beside the encoders.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.bases import FOLDER, Record, half, replace_folder, write_record
from pl_prefopt.demo.image.base import eight_bits, write_pipeline
from pl_prefopt.demo.image.data import caption_rows
from pl_prefopt.demo.image.pipelines import PIPELINES
from pl_prefopt.demo.image.report import measure
from pl_prefopt.demo.image.world import ShapesWorld
from pl_prefopt.demo.listing import config_path
from pl_prefopt.experimental.lightgen.policy import MaskedAutoregressivePolicy
from pl_prefopt.modules import ImagePreferenceModule
from pl_prefopt.objectives import DenoisingSFT
from pl_prefopt.policies import Diffusion
from pl_prefopt.utilities.digests import json_digest, tensors_digest

NAME = "image-lightgen"
CONFIG = "image-lightgen-base"
"""The demo that makes it."""
WORLD = ShapesWorld(size=8)
ENCODERS = "encoders"


def make_base(name: str = NAME, target: Path | None = None) -> Record:
    """Make the base again and measure it; about a minute on one core.

    Args:
        name: image-lightgen, the only base of this kind.
        target: folder to replace; None: the shipped base.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        folder, trained = Path(work) / "base", Path(work) / "export"
        write_pipeline(name, None, 1.0, folder / ENCODERS)
        cli([
            "fit", "--config", str(config_path(CONFIG)), f"--trainer.default_root_dir={work}",
            f"--data.cache_dir={work}/cache", "--trainer.callbacks=AdapterExport",
            f"--trainer.callbacks.path={trained}", f"--model.policy.encoders.pretrained={folder / ENCODERS}",
        ])  # fmt: skip
        half(policy(folder, trained)()).save_pretrained(folder)
        minutes = round((time.perf_counter() - start) / 60, 1)
        command = f"python -m pl_prefopt.demo make-base {name}"
        record = Record(command, minutes, settings_digest(), data_digest(), measure_base(folder))
        write_record(folder, record)
        replace_folder(folder, target or FOLDER / name)
    return record


def policy(folder: Path, network: Path) -> MaskedAutoregressivePolicy:
    """The builder of a network beside the encoders of a base."""
    encoders = Diffusion(pretrained=str(folder / ENCODERS))
    return MaskedAutoregressivePolicy(encoders=encoders, pretrained=str(network), clip=1.0, iterations=4)


def settings_digest(name: str = NAME) -> str:
    """Digest of the networks and of the training settings."""
    config = yaml.safe_load(config_path(CONFIG).read_text(encoding="utf-8"))
    trainer = {key: config["trainer"][key] for key in ("max_epochs", "gradient_clip_val")}
    data = {key: value for key, value in config["data"]["init_args"].items() if not isinstance(value, dict)}
    return json_digest([PIPELINES[name], config["seed_everything"], config["model"], trainer, data, WORLD.size])


def data_digest(name: str = NAME) -> str:
    """Digest of the first images and captions, in 8 bits."""
    rows = list(caption_rows(WORLD, 48, 0.2, np.random.default_rng(0)))
    texts = torch.tensor([WORLD.captions.index(row[0]) for row in rows])
    return tensors_digest([("images", eight_bits(torch.stack([row[1] for row in rows]))), ("texts", texts)])


def measure_base(folder: Path) -> dict[str, float]:
    """Shares of images with the caption's colour, shape and both, and of clear ones, at fixed seeds."""
    module = ImagePreferenceModule(policy=policy(folder, folder), objective=DenoisingSFT())
    module.setup("fit")
    images = module.sample(WORLD.captions, 16, 0, steps=10, guidance=2.0, batch_size=64, size=(WORLD.size, WORLD.size))
    values = measure(WORLD, images, images)
    return {name: round(values[name], 4) for name in ("colour", "shape", "both", "clear", "clarity")}
