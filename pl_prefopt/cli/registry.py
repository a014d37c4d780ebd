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
from pl_prefopt.utilities.configurable import Configurable

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
"""Public class -> (the extra it belongs to, the package that tells whether the extra is installed)."""

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
"""Last part of a key -> base of the classes that it takes."""


def import_classes() -> None:
    """Import the public classes, except those whose extra is not installed."""
    for package in (importlib.import_module(f"pl_prefopt.{name}") for name in PACKAGES):
        for name in package.__all__:
            if name[0].isupper() and missing_extra(name) is None:
                getattr(package, name)


def known_classes(key: str) -> set[str]:
    """Names of the classes that fit a key such as `model.objective`; all known ones where the key does not tell."""
    base = FAMILIES.get(key.rpartition(".")[2])
    bases = [base] if base else [Configurable, *FAMILIES.values()]
    usable = {c for b in bases for c in _below(b) if not inspect.isabstract(c) and c not in bases}
    return {c.__name__ for c in usable if not c.__name__.startswith("_")}


def missing_extra(name: str) -> tuple[str, str] | None:
    """(extra, package) that a class comes with, where it is not installed."""
    extra, package = REQUIRES.get(name, ("", ""))
    return None if not package or importlib.util.find_spec(package) else (extra, package)


def _below(base: type) -> set[type]:
    found = {base}
    for sub in base.__subclasses__():
        found |= _below(sub)
    return found
