"""The small pre-trained models that the demos begin with: where they lie, and what they were made from.

Each is a folder `pl_prefopt/demo/bases/<name>`, which YAML names as `package://pl_prefopt/demo/bases/<name>`. Its file
base.json records the settings and the data that it was made from and what was measured on it; the tests compare all
three with the present code.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from pl_prefopt.utilities.files import write_json

FOLDER = Path(__file__).parent / "bases"
RECORD = "base.json"
PATHS = ("_name_or_path", "name_or_path")
MAX_BYTES = 2 * 2**20
"""Largest base, so that all of them together stay a small part of the package."""


@dataclass(frozen=True)
class Record:
    """What a base was made from, and what was measured on it.

    Args:
        command: the command that makes it again.
        minutes: how long that took on one core.
        settings: digest of networks and training settings.
        data: digest of the training data.
        measured: name of a measure -> its value on the base as it is shipped.
    """

    command: str
    minutes: float
    settings: str
    data: str
    measured: dict[str, float]


MAKERS = {
    "text": "pl_prefopt.demo.text.base",
    "image": "pl_prefopt.demo.image.base",
    "image-sdxl": "pl_prefopt.demo.image.base",
    "image-flow": "pl_prefopt.demo.image.base",
    "image-lightgen": "pl_prefopt.demo.image.lightgen_base",
}
"""Name of a base -> the module that makes it."""


class Maker(Protocol):
    """What a module that makes bases has; every function is called with the name of the base."""

    def make_base(self, name: str, target: Path | None = None) -> Record:
        """Make it again, in `target` or where the shipped one lies, and measure it."""
        ...

    def settings_digest(self, name: str) -> str:
        """Digest of networks and training settings."""
        ...

    def data_digest(self, name: str) -> str:
        """Digest of a part of the training data."""
        ...

    def measure_base(self, folder: Path) -> dict[str, float]:
        """What the base in a folder can do."""
        ...


def names() -> list[str]:
    """Names of the bases."""
    return list(MAKERS)


def maker(name: str) -> Maker:
    """Return the module that makes a base."""
    return cast(Maker, import_module(MAKERS[name]))


def read_record(name: str) -> Record:
    """Return the record of a shipped base.

    Raises:
        FileNotFoundError: there is no such base.
    """
    return Record(**json.loads((FOLDER / name / RECORD).read_text(encoding="utf-8")))


def write_record(folder: Path, record: Record) -> None:
    """Write the record beside the weights."""
    write_json(folder / RECORD, asdict(record), indent=1)


def replace_folder(source: Path, target: Path) -> None:
    """Copy `source` to `target`, in place of what was there, without the paths that libraries note in configurations.

    Raises:
        ValueError: the files are larger than a base may be.
    """
    files = [path for path in source.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise ValueError(f"a base must take at most {MAX_BYTES} bytes, got {size}. Make its networks smaller")
    for path in files:
        path.chmod(0o644)
        if path.suffix == ".json" and path.name != "tokenizer.json":
            value = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in PATHS}
            write_json(path, value, indent=1)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("README.md"))


def half(network: Any) -> Any:
    """The network in float16, in which bases are stored; they are loaded as float32."""
    return network.to(torch.float16)
