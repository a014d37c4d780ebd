"""Callbacks that every modality shares, and that work in a LightningModule of your own."""

if __name__ != "pl_prefopt.callbacks":
    raise ImportError("import pl_prefopt.callbacks instead of callbacks: two copies of one class would not be equal")

from pl_prefopt.callbacks.adapter_export import AdapterExport
from pl_prefopt.callbacks.reference_sync import ReferenceSync

__all__ = ["AdapterExport", "ReferenceSync"]
