"""Keys of weights and files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from pl_prefopt.utilities.digests import file_digest, weights_key


def test_the_key_of_weights_is_that_of_earlier_versions() -> None:
    """Parts that an interrupted run left on disk stay valid."""
    network = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(network.weight, 0.25)
    torch.nn.init.constant_(network.bias, -3.0)
    assert weights_key(network) == hashlib.sha256(b"weight (1, 2) 0.5\nbias (1,) -3").hexdigest()
    torch.nn.init.constant_(network.bias, -3.0001)
    assert weights_key(network) != hashlib.sha256(b"weight (1, 2) 0.5\nbias (1,) -3").hexdigest()


def test_the_key_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"xyz")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"xyz").hexdigest()
