"""Public `pl_prefopt.datamodules`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt._lazy import exports

if __name__ != "pl_prefopt.datamodules":
    raise ImportError(
        "import pl_prefopt.datamodules instead of datamodules: two copies of one class would not recognise each other"
    )

if TYPE_CHECKING:
    from pl_prefopt.datamodules._base import PreferenceDataModule
    from pl_prefopt.datamodules._collate import Collator
    from pl_prefopt.datamodules._image_rows import ImagePairs
    from pl_prefopt.datamodules._loader import PlannedLoader
    from pl_prefopt.datamodules._rows import TokenizedRows
    from pl_prefopt.datamodules._sampler import EvalBatches, Share, TrainBatches
    from pl_prefopt.datamodules.image import ImagePreferenceDataModule
    from pl_prefopt.datamodules.image_relabel import relabel_images
    from pl_prefopt.datamodules.prompts import PromptDataModule
    from pl_prefopt.datamodules.text import TextPreferenceDataModule
    from pl_prefopt.datamodules.tokenizers import PretrainedTokenizer, TokenizerBuilder, TrainedTokenizer

_HOMES = {
    "Collator": "_collate",
    "EvalBatches": "_sampler",
    "ImagePairs": "_image_rows",
    "ImagePreferenceDataModule": "image",
    "PlannedLoader": "_loader",
    "PreferenceDataModule": "_base",
    "PretrainedTokenizer": "tokenizers",
    "PromptDataModule": "prompts",
    "Share": "_sampler",
    "TextPreferenceDataModule": "text",
    "TokenizedRows": "_rows",
    "TokenizerBuilder": "tokenizers",
    "TrainBatches": "_sampler",
    "TrainedTokenizer": "tokenizers",
    "relabel_images": "image_relabel",
}
__all__ = [
    "Collator",
    "EvalBatches",
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
    "relabel_images",
]


__getattr__ = exports(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
