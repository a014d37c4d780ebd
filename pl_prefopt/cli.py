"""The command line: LightningCLI with the library's classes known by their bare names.

pl-prefopt fit --config configs/demo/text-dpo.yaml --model.objective IPO
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from pl_prefopt.configurable import Configurable
from pl_prefopt.datamodules import TextPreferenceDataModule
from pl_prefopt.modules.text import TextPreferenceModule

EXTRAS = {"Image": ("image", "diffusers", ("pl_prefopt.modules.image", "pl_prefopt.datamodules.image"))}
"""Words in a command line or its config files -> (extra, package that it installs, modules to import)."""


class Parser(LightningArgumentParser):
    """Answers a wrong key with the key and the nearest valid one, and nothing else."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        sys.stderr.write(f"pl-prefopt: error: {_short(message)}\n")
        raise SystemExit(2)


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run folder, also when the folder is used again, and shows it in the logger."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True})

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the YAML text to TensorBoard."""
        if isinstance(trainer.logger, TensorBoardLogger):
            text = self.parser.dump(self.config, skip_none=False)
            trainer.logger.experiment.add_text("config", f"```yaml\n{text}\n```", 0)


class PrefOptCLI(LightningCLI):
    """LightningCLI in subclass mode; what was typed wins over what a checkpoint remembers."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Refuse abbreviated options: a typo must not silently mean something else."""
        parser = super().init_parser(**kwargs)
        parser.allow_abbrev = False
        return parser

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as typed; the module refuses a checkpoint of other hyper-parameters by name."""

    def instantiate_classes(self) -> None:
        """Build everything; an error of ours is shown without the parser's nest around it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise _root(error) from None

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True
        return kwargs


def main(args: list[str] | None = None) -> PrefOptCLI:
    """Run the command line; returns the CLI object, with its trainer, model and datamodule.

    Args:
        args: what follows `pl-prefopt`; None reads the process's own arguments.

    Raises:
        SystemExit: a wrong key or value, with one line on stderr.
        ValueError: bad data or settings, before the first step.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=r".*Found \d+ module\(s\) in eval mode.*")
    given = sys.argv[1:] if args is None else args
    import_extras(given)
    before, sys.argv = sys.argv, sys.argv[:1]
    try:
        return PrefOptCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            parser_class=Parser,
            save_config_callback=SaveConfig,
            args=given,
        )
    finally:
        sys.argv = before


def console() -> None:
    """Entry point of the installed command."""
    main()


def import_extras(args: list[str]) -> None:
    """Import the modalities that a command line names, so that nobody pays for what is not used.

    Raises:
        SystemExit: the packages of a named modality are not installed; says which extra to install.
    """
    text = " ".join(args) + " ".join(_config_texts(args))
    for word, (extra, package, modules) in EXTRAS.items():
        if not re.search(rf"\b{word}\w+", text):
            continue
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"pl-prefopt: error: {word}... needs {package}: pip install 'pl_prefopt[{extra}]'")
        for module in modules:
            importlib.import_module(module)


def _config_texts(args: list[str]) -> Iterator[str]:
    for i, arg in enumerate(args):
        value = arg.partition("=")[2] if "=" in arg else args[i + 1] if i + 1 < len(args) else ""
        if arg.split("=")[0] in ("--config", "-c") and Path(value).is_file():
            yield Path(value).read_text(encoding="utf-8")


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error


def _short(message: str) -> str:
    """One line for the parser's message: the key or class that was not accepted, and the nearest that is."""
    option = re.search(
        r"(?:[Oo]ption|Key) '?\"?([\w.\-]+)'?\"?(?: is not| not)|does not accept option '([\w.\-]+)'", message
    )
    option = option or re.search(r"[Uu]nrecognized arguments: -*([\w.\-]+)", message)
    if option:
        key = next(g for g in option.groups() if g)
        return f"unknown key {key!r}" + _hint(key, _known_keys())
    name = re.search(r"dot import path string: ([\w.]+)", message)
    if name:
        return f"unknown class {name.group(1)!r}" + _hint(name.group(1), {c.__name__ for c in _known_classes()})
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    noise = ("Subtypes:", "Errors:", "Given value type", "Does not validate")
    return " ".join(line for line in lines if not line.startswith(noise))


def _hint(word: str, known: set[str]) -> str:
    """The nearest valid spelling, part by part of a dotted key; empty where nothing is near."""
    parts = [p if p in known else next(iter(difflib.get_close_matches(p, known, 1)), "") for p in word.split(".")]
    near = ".".join(parts)
    return f"; did you mean {near!r}?" if all(parts) and near != word else ""


def _known_classes() -> set[type]:
    def below(base: type) -> set[type]:
        return {base}.union(*(below(c) for c in base.__subclasses__()))

    bases = (Configurable, pl.LightningModule, pl.LightningDataModule, pl.Callback, torch.optim.Optimizer)
    schedulers = torch.optim.lr_scheduler.LRScheduler
    return set().union(*(below(base) for base in (*bases, schedulers)))


def _known_keys() -> set[str]:
    keys = {"model", "data", "trainer", "seed_everything", "ckpt_path", "config", "verbose", "return_predictions"}
    for cls in {*_known_classes(), pl.Trainer, TextPreferenceModule, TextPreferenceDataModule}:
        keys |= set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}
    return keys


if __name__ == "__main__":
    console()
