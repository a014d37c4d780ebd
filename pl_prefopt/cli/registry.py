"""Classes that a configuration may call by their bare names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from pl_prefopt.datamodules import TokenizerBuilder
from pl_prefopt.diffusion.timesteps import TimestepSampler, Weighting
from pl_prefopt.judges import Judge
from pl_prefopt.objectives import Objective
from pl_prefopt.policies import PolicyBuilder
from pl_prefopt.references import Reference
from pl_prefopt.rounds import PairRule
from pl_prefopt.utilities.configurable import Configurable, subclasses

PACKAGES = (
    "modules", "datamodules", "callbacks", "objectives", "policies", "references", "judges", "rounds",
    "experimental.lightgen",
)  # fmt: skip
REQUIRES = {
    "Diffusion": ("image", "diffusers"),
    "ImagePreferenceDataModule": ("image", "PIL"),
    "ImagePreferenceModule": ("image", "diffusers"),
    "DiffusionHead": ("image", "diffusers"),
    "MaskedAutoregressive": ("image", "diffusers"),
    "MaskedAutoregressivePolicy": ("image", "diffusers"),
}
"""Public class -> (the extra it belongs to, a package that is installed with the extra)."""

FAMILIES: dict[str, type] = {
    "model": pl.LightningModule,
    "data": pl.LightningDataModule,
    "callbacks": pl.Callback,
    "logger": Logger,
    "strategy": Strategy,
    "optimizer": torch.optim.Optimizer,
    "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "objective": Objective,
    "policy": PolicyBuilder,
    "reference": Reference,
    "inner": Reference,
    "timesteps": TimestepSampler,
    "weighting": Weighting,
    "tokenizer": TokenizerBuilder,
    "judge": Judge,
    "rule": PairRule,
}
"""Last part of a key -> base of the classes that it accepts."""


def import_classes() -> None:
    """Import the public classes, except those whose extra is not installed."""
    for package in (importlib.import_module(f"pl_prefopt.{name}") for name in PACKAGES):
        for name in package.__all__:
            if name[0].isupper() and missing_extra(name) is None:
                getattr(package, name)


def known_classes(key: str) -> set[str]:
    """Names of the classes that a key such as `model.objective` accepts; all known ones for another key."""
    base = FAMILIES.get(key.rpartition(".")[2])
    bases = [base] if base else [Configurable, *FAMILIES.values()]
    below = {cls for base in bases for cls in subclasses(base)} - set(bases)
    return {cls.__name__ for cls in below if not inspect.isabstract(cls) and not cls.__name__.startswith("_")}


def missing_extra(name: str) -> tuple[str, str] | None:
    """(extra, package) that a class requires, None where the package is installed or none is required."""
    if name not in REQUIRES or importlib.util.find_spec(REQUIRES[name][1]):
        return None
    return REQUIRES[name]
