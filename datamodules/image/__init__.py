"""Pairs of images."""

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.datamodules.image.datamodule import ImagePreferenceDataModule

__all__ = ["ImagePreferenceDataModule"]

__getattr__ = exports(__name__, {"ImagePreferenceDataModule": "datamodule"})
