"""Pairs and lists of text."""

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.datamodules.text.datamodule import TextPreferenceDataModule

__all__ = ["TextPreferenceDataModule"]

__getattr__ = exports(__name__, {"TextPreferenceDataModule": "datamodule"})
