"""Families of denoisers: how each kind of network is called."""

from pl_prefopt.diffusion.families.base import Condition, Draws, Family
from pl_prefopt.diffusion.families.flux import Flux
from pl_prefopt.diffusion.families.sd3 import SD3
from pl_prefopt.diffusion.families.unet import UNet, UNetXL

__all__ = ["SD3", "Condition", "Draws", "Family", "Flux", "UNet", "UNetXL"]
