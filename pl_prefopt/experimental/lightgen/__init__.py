"""LightGen: a masked autoregressive model of image latents, distilled and tuned on preferences (unverified reading)."""

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if TYPE_CHECKING:
    from pl_prefopt.experimental.lightgen.head import DiffusionHead
    from pl_prefopt.experimental.lightgen.network import MaskedAutoregressive
    from pl_prefopt.experimental.lightgen.policy import MaskedAutoregressivePolicy

__all__ = ["DiffusionHead", "MaskedAutoregressive", "MaskedAutoregressivePolicy"]

__getattr__ = exports(
    __name__,
    {"DiffusionHead": "head", "MaskedAutoregressive": "network", "MaskedAutoregressivePolicy": "policy"},
)
