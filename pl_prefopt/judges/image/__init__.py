"""Judges of images."""

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.judges.image.models import Aesthetic, OpenCLIP, PickScore
    from pl_prefopt.judges.image.rating import VerbalisedRating
    from pl_prefopt.judges.image.rules import Colourfulness, Sharpness

__all__ = ["Aesthetic", "Colourfulness", "OpenCLIP", "PickScore", "Sharpness", "VerbalisedRating"]

__getattr__ = exports(
    __name__,
    {
        "Aesthetic": "models",
        "OpenCLIP": "models",
        "PickScore": "models",
        "Colourfulness": "rules",
        "Sharpness": "rules",
        "VerbalisedRating": "rating",
    },
)
