"""Datamodules of all modalities, and what they are made of; each is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if __name__ != "pl_prefopt.datamodules":
    raise ImportError(
        "import pl_prefopt.datamodules instead of datamodules: two copies of one class would not recognise each other"
    )

if TYPE_CHECKING:
    from pl_prefopt.datamodules.base import PreferenceDataModule
    from pl_prefopt.datamodules.image import ImagePreferenceDataModule
    from pl_prefopt.datamodules.image.geometry import Geometry
    from pl_prefopt.datamodules.image.relabel import relabel_images
    from pl_prefopt.datamodules.image.rows import ImagePairs
    from pl_prefopt.datamodules.loading.batches import EvalBatches, Share, TrainBatches
    from pl_prefopt.datamodules.loading.loader import PlannedLoader
    from pl_prefopt.datamodules.prompts import PromptDataModule
    from pl_prefopt.datamodules.text import TextPreferenceDataModule
    from pl_prefopt.datamodules.text.collate import Collator
    from pl_prefopt.datamodules.text.rows import TokenizedRows
    from pl_prefopt.datamodules.text.truncate import Truncation
    from pl_prefopt.datamodules.tokenizers import PretrainedTokenizer, TokenizerBuilder, TrainedTokenizer

_HOMES = {
    "Collator": "text.collate",
    "EvalBatches": "loading.batches",
    "Geometry": "image.geometry",
    "ImagePairs": "image.rows",
    "ImagePreferenceDataModule": "image.datamodule",
    "PlannedLoader": "loading.loader",
    "PreferenceDataModule": "base",
    "PretrainedTokenizer": "tokenizers",
    "PromptDataModule": "prompts",
    "Share": "loading.batches",
    "TextPreferenceDataModule": "text.datamodule",
    "TokenizedRows": "text.rows",
    "TokenizerBuilder": "tokenizers",
    "TrainBatches": "loading.batches",
    "TrainedTokenizer": "tokenizers",
    "Truncation": "text.truncate",
    "relabel_images": "image.relabel",
}
__all__ = [
    "Collator",
    "EvalBatches",
    "Geometry",
    "ImagePairs",
    "ImagePreferenceDataModule",
    "PlannedLoader",
    "PreferenceDataModule",
    "PretrainedTokenizer",
    "PromptDataModule",
    "Share",
    "TextPreferenceDataModule",
    "TokenizedRows",
    "TokenizerBuilder",
    "TrainBatches",
    "TrainedTokenizer",
    "Truncation",
    "relabel_images",
]


__getattr__ = exports(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
