"""Makes the base of the text demos: a small language model that knows the neutral language of the sentiment world."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from pl_prefopt.cli import main as cli
from pl_prefopt.demo.bases import FOLDER, Record, replace_folder, write_record
from pl_prefopt.demo.listing import config_path
from pl_prefopt.demo.text.data import sentiment_tokenizer
from pl_prefopt.demo.text.exact import Enumeration, data_enumeration, enumerate_policy, measure
from pl_prefopt.demo.text.pairs import Recipe, draw_rows
from pl_prefopt.demo.text.world import SIGNS, SentimentWorld
from pl_prefopt.policies import CausalLM
from pl_prefopt.utilities.digests import json_digest

NAME = "text"
CONFIG = "text-sft"
"""The demo that makes it: supervised fine-tuning."""


def make_base(name: str = NAME, target: Path | None = None) -> Record:
    """Make the base again and measure it; about a minute on one core.

    Args:
        name: text, the only base of this modality.
        target: folder to replace; None: the shipped base.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        export = Path(work) / "export"
        cli([
            "fit", "--config", str(config_path(CONFIG)), f"--trainer.default_root_dir={work}",
            f"--data.cache_dir={work}/cache", "--trainer.callbacks=AdapterExport", f"--trainer.callbacks.path={export}",
        ])  # fmt: skip
        sentiment_tokenizer().save_pretrained(export)
        minutes = round((time.perf_counter() - start) / 60, 1)
        record = Record(
            f"python -m pl_prefopt.demo make-base {name}", minutes, settings_digest(), data_digest(),
            measure_base(export),
        )  # fmt: skip
        write_record(export, record)
        replace_folder(export, target or FOLDER / name)
    return record


def settings_digest(name: str = NAME) -> str:
    """Digest of the network and of the training settings: model, data and trainer of the demo's configuration."""
    config = yaml.safe_load(config_path(CONFIG).read_text(encoding="utf-8"))
    trainer = {key: config["trainer"][key] for key in ("max_epochs", "gradient_clip_val")}
    data = {key: value for key, value in config["data"]["init_args"].items() if not isinstance(value, dict)}
    return json_digest([config["seed_everything"], config["model"], trainer, data])


def data_digest(name: str = NAME) -> str:
    """Digest of the first rows of the corpus."""
    rows = draw_rows(SentimentWorld(), tuple(SIGNS), Recipe(labels=False), 200, held=False,
                     rng=np.random.default_rng([0, 0]))  # fmt: skip
    return json_digest(list(rows))


def measure_base(folder: Path) -> dict[str, float]:
    """Exact measures of the language model: how far it is from the data, its reward, length and leak."""
    world, topics = SentimentWorld(), tuple(SIGNS)
    policy = enumerate_policy(CausalLM(pretrained=str(folder))(), sentiment_tokenizer(), world, topics)
    data = data_enumeration(world, topics)
    values = measure(world, topics, policy, Enumeration(data.logps, data.leak))
    return {name: round(values[name], 4) for name in ("reward", "kl", "entropy", "length", "leak")}
