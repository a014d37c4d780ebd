"""Networks that no other library offers; they need the extra `image`."""

from pl_prefopt._lazy import exports

__all__ = ["DiffusionHead", "MaskedAutoregressive"]  # noqa: F822

__getattr__ = exports(__name__, {"DiffusionHead": "diffusion_head", "MaskedAutoregressive": "masked_autoregressive"})
