"""Folders in which datamodules keep what they have computed."""

from __future__ import annotations

import os
from pathlib import Path

from pl_prefopt.utilities.digests import json_digest


def cache_folder(path: str | None = None) -> Path:
    """Return the data cache: `path`, else $PL_PREFOPT_CACHE, else pl_prefopt in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(path or os.environ.get("PL_PREFOPT_CACHE") or f"{base}/pl_prefopt").expanduser()


def generated_folder(path: str | None, kind: str, settings: object) -> Path:
    """Return the folder of files that were generated from plain `settings`: `<cache>/<kind>/<key>`."""
    return cache_folder(path) / kind / json_digest(settings)[:20]
