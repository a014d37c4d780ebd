"""Objectives: what YAML names in `objective:`."""

from pl_prefopt.objectives.base import Objective
from pl_prefopt.objectives.diffusion import DDO, DSPO, DenoisingSFT, DiffusionKTO, LinearDPO, MaPO
from pl_prefopt.objectives.divergence import FDPO
from pl_prefopt.objectives.lists import ADPO, IRPO, PlackettLuce, SoftmaxDPO, list_targets
from pl_prefopt.objectives.mixture import WPO, Mixture
from pl_prefopt.objectives.multi import MODPO, PAMA
from pl_prefopt.objectives.pairwise import (
    BCO,
    DPO,
    DPOP,
    EXO,
    IPO,
    NCA,
    SPPO,
    APODown,
    APOZero,
    DiscoPOP,
    Hinge,
    NormalizedDPO,
    RobustDPO,
)
from pl_prefopt.objectives.reference_free import ORPO, SFT, SimPO
from pl_prefopt.objectives.token import LDDPO, TDPO

__all__ = [
    "ADPO",
    "BCO",
    "DDO",
    "DPO",
    "DPOP",
    "DSPO",
    "EXO",
    "FDPO",
    "IPO",
    "IRPO",
    "LDDPO",
    "MODPO",
    "NCA",
    "ORPO",
    "PAMA",
    "SFT",
    "SPPO",
    "TDPO",
    "WPO",
    "APODown",
    "APOZero",
    "DenoisingSFT",
    "DiffusionKTO",
    "DiscoPOP",
    "Hinge",
    "LinearDPO",
    "MaPO",
    "Mixture",
    "NormalizedDPO",
    "Objective",
    "PlackettLuce",
    "RobustDPO",
    "SimPO",
    "SoftmaxDPO",
    "list_targets",
]
