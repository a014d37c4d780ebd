"""The command line: LightningCLI with the library's classes known by their bare names.

pl-prefopt fit --config configs/demo/text-dpo.yaml --model.objective IPO
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from pl_prefopt.cli.checkpoints import CHOSEN_BY_LIGHTNING, check_checkpoint, last_checkpoint
from pl_prefopt.cli.documents import read_document
from pl_prefopt.cli.errors import (
    DEBUG,
    USER_ERRORS,
    ConfigurationError,
    Refused,
    brief,
    cut,
    debugging,
    name_path,
    raise_refused,
)
from pl_prefopt.cli.limits import check_settings, settings_of
from pl_prefopt.cli.messages import shorten, unknown_key
from pl_prefopt.cli.registry import import_classes
from pl_prefopt.cli.renames import current_arguments, current_option, current_paths, moved_arguments
from pl_prefopt.modules.checkpoints import compare_hparams

RESUMED = (
    "model.init_args.optimizer", "model.init_args.lr_scheduler", "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.precision",
)  # fmt: skip
"""Settings outside the module's hyper-parameters that must not change when a run is resumed."""


class Parser(LightningArgumentParser):
    """Reads old names with a warning, and answers a wrong key or class in one line that names the nearest valid one."""

    moved: Mapping[str, str] = {}
    """Old argument -> new one, of the class whose arguments this parser reads."""

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Remember the arguments of the class that have moved."""
        if nested_key is None:
            self.moved = moved_arguments(theclass)
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a configuration file; what is wrong with the file itself is said with its line."""
        try:
            read_document(os.fspath(path))
        except (ConfigurationError, OSError) as error:
            self.error(brief(error), error)
        return super().parse_path(path, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse the text of a configuration file, in which classes may have old paths."""
        return super().parse_string(current_paths(content), *args, **kwargs)

    def parse_object(self, obj: Namespace | dict[str, Any], *args: Any, **kwargs: Any) -> Namespace:
        """Parse arguments of a class, which may have old names."""
        if self.moved.keys() & obj.keys():
            obj = Namespace(obj)
            current_arguments(obj, self.moved)
        return super().parse_object(obj, *args, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:
        """Parse the command line, or one option of a class, in which names may be old."""
        arguments = sys.argv[1:] if args is None else args
        current = [current_option(current_paths(argument), self.moved) for argument in arguments]
        return super().parse_args(current, *rest, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check a configuration; the answer to a wrong key names the nearest key of its own level."""
        try:
            super().validate(*args, **kwargs)
        except KeyError as error:
            quoted = re.findall(r"'([^']+)'", str(error))
            if not quoted or "accept" not in str(error):
                raise
            key = quoted[0] if "before subcommand" in str(error) else quoted[-1]
            raise type(error)(unknown_key(key, argument_names(self))) from None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        if debugging():
            raise ConfigurationError(message) from ex
        if match := re.search(r"[Uu]nrecognized arguments: -*([^\s=]+)", message):
            message = unknown_key(match[1], argument_names(self))
        answer = re.sub(rf"\b({'|'.join(LightningCLI.subcommands())})\.(?=data|model)", "", shorten(message))
        sys.stderr.write(f"pl-prefopt: error: {cut(answer)}\n")
        raise SystemExit(2)


def argument_names(parser: argparse.ArgumentParser) -> set[str]:
    """Dotted names of all arguments of a parser and of its subcommands."""
    names = {a.dest for a in parser._actions if not a.dest.endswith("help")}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names = names.union(*(argument_names(sub) for sub in action.choices.values()))
    return names - {"subcommand"}


class RunConfig(SaveConfigCallback):
    """Saves config.yaml in the run folder and in TensorBoard, and refuses to resume under another optimizer."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the YAML text to TensorBoard."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                text = self.parser.dump(self.config, skip_none=False)
                logger.experiment.add_text("config", f"```yaml\n{text}\n```", 0)

    def state_dict(self) -> dict[str, Any]:
        """Settings to compare when the run is resumed, as plain values."""
        return {key: _plain(self.config.get(key)) for key in RESUMED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the settings of a resumed run with those it began with.

        Raises:
            ValueError: listing `name: value in the checkpoint != configured value`.
        """
        configured = self.state_dict()
        compare_hparams({key: configured[key] for key in configured.keys() & state_dict.keys()}, state_dict)


class PrefOptCLI(LightningCLI):
    """LightningCLI in subclass mode; the configuration takes precedence over the hyper-parameters of a checkpoint."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line and refuse numbers that are plainly mistakes."""
        super().parse_arguments(parser, args)
        self.settings = dict(settings_of(self.config[self.config["subcommand"]]))
        try:
            check_settings(self.settings)
        except ConfigurationError as error:
            parser.error(str(error), error)

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; what a class says about its arguments comes through alone, after its key.

        Raises:
            ConfigurationError: what a class has refused.
        """
        building = True

        def build(cls: type, *args: Any, **kwargs: Any) -> object:
            try:
                return cls(*args, **kwargs)
            except USER_ERRORS as error:
                if not building:  # an optimizer or schedule: it is built when the run asks for it
                    raise ConfigurationError(f"{cls.__name__}: {brief(error)}") from error
                raise Refused(cls, error) from error

        self.parser.add_instantiator(build, object, subclasses=True)
        try:
            super().instantiate_classes()
        except Refused as refused:
            raise_refused(refused, "")
        except ConfigurationError:
            raise
        except USER_ERRORS as error:
            raise ConfigurationError(shorten(str(error))) from error
        finally:
            building = False

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer; its errors begin with its key."""
        try:
            return super().instantiate_trainer(**kwargs)
        except USER_ERRORS as error:
            raise ConfigurationError(f"trainer: {brief(error)}") from error

    def _run_subcommand(self, subcommand: str) -> None:
        """Run, and name the setting that a wrong path came from."""
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            raise name_path(error, self.settings) from error

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is; the module refuses a checkpoint of other hyper-parameters by name."""

    def after_fit(self) -> None:
        """Print how the run ended on held-out data, and where its files are."""
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # a collective: every rank has to call it
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        values = self.trainer.callback_metrics
        metrics = [f"{k} {float(v):.4f}" for k, v in values.items() if re.fullmatch(r"val/(.+/)?(accuracy|loss)", k)]
        print("; ".join([*metrics, f"files in {folder}"]))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Load checkpoints as tensors and plain values unless `weights_only` is set, and refuse what is none."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True
        path = kwargs.get("ckpt_path")
        if path and path not in CHOSEN_BY_LIGHTNING and "://" not in str(path) and "registry" not in str(path):
            file = last_checkpoint(self.trainer) if path == "last" else Path(path)
            check_checkpoint(file, self.model, subcommand, kwargs["weights_only"])
            kwargs["ckpt_path"] = str(file)
        return kwargs


def main(args: list[str] | None = None) -> PrefOptCLI:
    """Run the command line and return the CLI object, with its trainer, model and datamodule.

    Args:
        args: the arguments after `pl-prefopt`; None reads those of the process.

    Raises:
        SystemExit: a wrong key or value, with one line on stderr; with --debug a ConfigurationError instead.
        ConfigurationError: a value that a class refuses.
        ValueError: bad data or settings, before the first step.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=r".*Found \d+ module\(s\) in eval mode.*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", module=r"lightning\.")  # in Lightning's own code
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(_no_advertisement)
    import_classes()
    with _quiet_argv(args is not None):
        return PrefOptCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False},
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            args=args,
        )


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


@contextmanager
def _quiet_argv(hide: bool) -> Iterator[None]:
    """Hide the arguments of the process while the command line is called from Python with arguments of its own.

    LightningCLI warns where both exist. Otherwise they have to stay, because DDP starts its other processes with them.
    """
    arguments = sys.argv
    sys.argv = arguments[:1] if hide else arguments
    try:
        yield
    finally:
        sys.argv = arguments


def console() -> None:
    """Entry point of the installed command; `pl-prefopt demo ...` lists and runs the demos.

    What a user got wrong ends in one to three lines. The status is 2 for a wrong configuration and 1 for a run that
    stopped. `--debug`, anywhere among the arguments, shows the trace.
    """
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[DEBUG] = "1"
    try:
        if sys.argv[1:2] == ["demo"]:
            # by name: the demo is a user of the command line, and nothing of the library depends on it
            importlib.import_module("pl_prefopt.demo.__main__").main(sys.argv[2:])
        else:
            main()
    except USER_ERRORS as error:
        if debugging():
            raise
        hint = "" if isinstance(error, ConfigurationError) else " (--debug shows where)"
        sys.stderr.write(f"pl-prefopt: error: {brief(error)}{hint}\n")
        raise SystemExit(2 if isinstance(error, ConfigurationError) else 1) from None


def _plain(value: Any) -> Any:
    return value.as_dict() if hasattr(value, "as_dict") else value


if __name__ == "__main__":
    console()
