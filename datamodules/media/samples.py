"""What a policy made, as ordinary files: pictures as PNG, pairs as JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def write_pictures(root: Path, name: str, samples: Sequence[Tensor]) -> list[str]:
    """Write pictures (3, H, W) in [0, 1] as `<root>/<name>-<i>.png`, 8 bit; return the paths below `root`.

    Raises:
        ValueError: a sample of another shape or range, or not finite.
    """
    from PIL import Image

    places = [f"{name}-{i}.png" for i in range(len(samples))]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    for place, sample in zip(places, samples, strict=True):
        if sample.dim() != 3 or sample.shape[0] != 3 or not bool(((sample >= 0) & (sample <= 1)).all()):
            raise ValueError(
                f"a sample is a tensor {tuple(sample.shape)} in [{sample.min().item():g}, {sample.max().item():g}]; "
                "accepted: pictures (3, H, W) in [0, 1]"
            )
        pixels = (sample.detach().float() * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(pixels).save(root / place)
    return places


def write_picture_pairs(root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Write pairs as `<root>/<name>.jsonl` with the pictures' paths from there, and `condition` as `caption`."""
    path = root / f"{name}.jsonl"

    def line(row: dict[str, Any]) -> dict[str, Any]:
        sides = {
            side: Path(os.path.relpath(root / row[side], path.parent)).as_posix() for side in ("chosen", "rejected")
        }
        return {"caption": row["condition"], **{k: v for k, v in row.items() if k != "condition"}, **sides}

    return write_jsonl(path, map(line, rows))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows as JSON lines, the file complete or absent; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.part")
    work.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    work.replace(path)
    return str(path)
