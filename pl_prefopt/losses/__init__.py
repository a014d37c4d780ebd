"""Pure functions of log-ratios: unreduced, differentiable twice, torch only."""

from pl_prefopt.losses.diffusion import (
    ddo_loss,
    denoising_logratios,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    dspo_loss,
    linear_dpo_loss,
    mapo_loss,
    safeguard_factor,
)
from pl_prefopt.losses.divergence import f_dpo_loss, f_score
from pl_prefopt.losses.fast_slow import fast_slow_loss
from pl_prefopt.losses.lists import (
    adpo_listwise_loss,
    adpo_pairwise_loss,
    irpo_loss,
    plackett_luce_loss,
    softmax_dpo_loss,
)
from pl_prefopt.losses.multi import modpo_loss, modpo_weights, pama_loss, pama_scale
from pl_prefopt.losses.pairwise import (
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    discopop_loss,
    dpo_loss,
    dpop_loss,
    exo_loss,
    hinge_loss,
    ipo_loss,
    nca_loss,
    robust_dpo_loss,
    sppo_loss,
)
from pl_prefopt.losses.reference_free import orpo_loss, simpo_loss
from pl_prefopt.losses.token import length_desensitized_sum, tdpo_loss

__all__ = [
    "adpo_listwise_loss",
    "adpo_pairwise_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_loss",
    "ddo_loss",
    "denoising_logratios",
    "diffusion_dpo_loss",
    "diffusion_kto_loss",
    "discopop_loss",
    "dpo_loss",
    "dpop_loss",
    "dspo_loss",
    "exo_loss",
    "f_dpo_loss",
    "f_score",
    "fast_slow_loss",
    "hinge_loss",
    "ipo_loss",
    "irpo_loss",
    "length_desensitized_sum",
    "linear_dpo_loss",
    "mapo_loss",
    "modpo_loss",
    "modpo_weights",
    "nca_loss",
    "orpo_loss",
    "pama_loss",
    "pama_scale",
    "plackett_luce_loss",
    "robust_dpo_loss",
    "safeguard_factor",
    "simpo_loss",
    "softmax_dpo_loss",
    "sppo_loss",
    "tdpo_loss",
]
