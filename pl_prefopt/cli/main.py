"""The command line: LightningCLI with the library's classes known by their bare names.

pl-prefopt fit --config configs/demo/text-dpo.yaml --model.objective IPO
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from pl_prefopt.cli.messages import shorten, unknown_key
from pl_prefopt.cli.registry import import_classes
from pl_prefopt.modules.checkpoints import compare_hparams

RESUMED = (
    "model.init_args.optimizer", "model.init_args.lr_scheduler", "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.precision",
)  # fmt: skip
"""Settings outside the module's hparams under which a run cannot be continued with other values."""


class Parser(LightningArgumentParser):
    """Answers a wrong key or class with the nearest valid one, and nothing else."""

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check a configuration; a wrong key is answered from the keys of its own level."""
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
        if found := re.search(r"[Uu]nrecognized arguments: -*([^\s=]+)", message):
            message = unknown_key(found[1], argument_names(self))
        sys.stderr.write(f"pl-prefopt: error: {shorten(message)}\n")
        raise SystemExit(2)


def argument_names(parser: argparse.ArgumentParser) -> set[str]:
    """Dotted names of all arguments of a parser and of its subcommands."""
    names = {a.dest for a in parser._actions if not a.dest.endswith("help")}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names = names.union(*(argument_names(sub) for sub in action.choices.values()))
    return names - {"subcommand"}


class RunConfig(SaveConfigCallback):
    """Writes config.yaml into the run folder and TensorBoard, and refuses to resume under another optimiser."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Show the YAML text in TensorBoard."""
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
        own = self.state_dict()
        compare_hparams({key: own[key] for key in own.keys() & state_dict.keys()}, state_dict)


class PrefOptCLI(LightningCLI):
    """LightningCLI in subclass mode; what was typed wins over what a checkpoint remembers."""

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as typed; the module refuses a checkpoint of other hyper-parameters by name."""

    def after_fit(self) -> None:
        """Say how the run ended on held-out data, and where its files lie."""
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # asks all ranks
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        values = self.trainer.callback_metrics
        told = [f"{k} {float(v):.4f}" for k, v in values.items() if re.fullmatch(r"val/(.+/)?(accuracy|loss)", k)]
        print("; ".join([*told, f"files in {folder}"]))

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Read checkpoints as tensors and plain values unless the command line says otherwise."""
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
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*", module=r"lightning\.")  # theirs to mend
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


@contextmanager
def _quiet_argv(hide: bool) -> Iterator[None]:
    """LightningCLI warns when `args` come beside those of the process; without `args` they must stay: DDP starts its
    other processes with them.
    """
    before = sys.argv
    sys.argv = before[:1] if hide else before
    try:
        yield
    finally:
        sys.argv = before


def console() -> None:
    """Entry point of the installed command; `pl-prefopt demo ...` lists and runs the demos."""
    if sys.argv[1:2] == ["demo"]:
        from pl_prefopt.demo.__main__ import main as demo

        demo(sys.argv[2:])
    else:
        main()


def _plain(value: Any) -> Any:
    return value.as_dict() if hasattr(value, "as_dict") else value


if __name__ == "__main__":
    console()
