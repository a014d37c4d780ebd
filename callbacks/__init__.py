"""Callbacks that every modality shares, and that work in a LightningModule of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pl_prefopt.utilities.lazy import exports

if __name__ != "pl_prefopt.callbacks":
    raise ImportError(
        "import pl_prefopt.callbacks instead of callbacks: two copies of one class would not recognise each other"
    )

if TYPE_CHECKING:
    from pl_prefopt.callbacks.adapter_export import AdapterExport
    from pl_prefopt.callbacks.ches_filter import CHESFilter
    from pl_prefopt.callbacks.displacement_monitor import LikelihoodDisplacementMonitor
    from pl_prefopt.callbacks.fast_slow_lora import FastSlowLoRA
    from pl_prefopt.callbacks.group_influence import GroupInfluenceMixture
    from pl_prefopt.callbacks.prediction_writer import PredictionWriter
    from pl_prefopt.callbacks.preference_rounds import PreferenceRounds
    from pl_prefopt.callbacks.reference_sync import ReferenceSync
    from pl_prefopt.callbacks.sample_preview import SamplePreview
    from pl_prefopt.callbacks.self_play_rounds import SelfPlayRounds

_HOMES = {
    "AdapterExport": "adapter_export",
    "CHESFilter": "ches_filter",
    "FastSlowLoRA": "fast_slow_lora",
    "GroupInfluenceMixture": "group_influence",
    "LikelihoodDisplacementMonitor": "displacement_monitor",
    "PredictionWriter": "prediction_writer",
    "PreferenceRounds": "preference_rounds",
    "ReferenceSync": "reference_sync",
    "SamplePreview": "sample_preview",
    "SelfPlayRounds": "self_play_rounds",
}
__all__ = [
    "AdapterExport",
    "CHESFilter",
    "FastSlowLoRA",
    "GroupInfluenceMixture",
    "LikelihoodDisplacementMonitor",
    "PredictionWriter",
    "PreferenceRounds",
    "ReferenceSync",
    "SamplePreview",
    "SelfPlayRounds",
]

__getattr__ = exports(__name__, _HOMES)
