"""Networks that no other library offers; they need the extra `image`."""

from typing import TYPE_CHECKING

from pl_prefopt._lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.models.diffusion_head import DiffusionHead
    from pl_prefopt.models.masked_autoregressive import MaskedAutoregressive

__all__ = ["DiffusionHead", "MaskedAutoregressive"]

__getattr__ = exports(__name__, {"DiffusionHead": "diffusion_head", "MaskedAutoregressive": "masked_autoregressive"})
