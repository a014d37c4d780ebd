"""The shapes world as a data module: PNG files and JSON lines that `ImagePreferenceDataModule` reads like anybody's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from pl_prefopt.datamodules.files.cache import generated_folder
from pl_prefopt.datamodules.image import ImagePreferenceDataModule
from pl_prefopt.datamodules.image.geometry import Geometry
from pl_prefopt.datamodules.image.samples import write_images
from pl_prefopt.demo.image.world import COLOURS, SHAPES, ShapesWorld, parse
from pl_prefopt.utilities.checks import integer, within
from pl_prefopt.utilities.configurable import to_config
from pl_prefopt.utilities.files import create_folder, write_jsonl

FORMAT = 1
RIGHT = 0.5
"""Probability that an attribute of an image in a pair is the caption's."""


class ShapesDataModule(ImagePreferenceDataModule):
    """Rows of the shapes world, generated once per setting and seed.

    A row of pairs: a caption and two images, each attribute of each image right with probability 1/2; the image
    with more right attributes is chosen, and there are no ties. Validation pairs are labelled without flips.

    Args:
        labels: False gives the corpus that the base model is made from: captions that are often wrong, each with one
            image, as "chosen".
        rows: training rows.
        eval_rows: validation rows.
        wrong: without labels, the probability that a caption is that of another image, in [0, 1].
        flip: with labels, the share of them that are swapped, in [0, 1].
        world: the world.
        batch_size: rows per micro-batch.
        eval_batch_size: the same in evaluation; None means `batch_size`.
        num_workers: worker processes per loader.
        seed: seed of rows and order.
        cache_dir: folder of generated files; None: $PL_PREFOPT_CACHE or the user's cache folder.

    Raises:
        ValueError: a share outside [0, 1], or no rows.
    """

    def __init__(
        self,
        labels: bool = True,
        rows: int = 1500,
        eval_rows: int = 200,
        wrong: float = 0.4,
        flip: float = 0.0,
        world: ShapesWorld = ShapesWorld(),  # noqa: B008
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        arguments = {k: to_config(v) for k, v in locals().items() if k not in ("self", "__class__")}
        integer("rows", rows)
        integer("eval_rows", eval_rows)
        for name, share in (("wrong", wrong), ("flip", flip)):
            within(name, share, 0, 1)
        options = [FORMAT, labels, rows, eval_rows, wrong, flip, to_config(world), seed]
        folder = generated_folder(cache_dir, "shapes", options)
        super().__init__(
            train=str(folder / "train.jsonl"),
            val=str(folder / "val.jsonl"),
            geometry=Geometry(world.size),
            encode_batch_size=64,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
        )
        self.save_hyperparameters(arguments, logger=False)
        self.world, self.labels, self.rows, self.eval_rows = world, labels, rows, eval_rows
        self.wrong, self.flip, self.folder = wrong, flip, folder

    def prepare_data(self) -> None:
        """Write the files, then check them."""
        self._write()
        super().prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open the rows; what `prepare_data` has not made is made here."""
        self._write()
        super().setup(stage)

    def _write(self) -> None:
        create_folder(self.folder, self._write_splits)

    def _write_splits(self, work: Path) -> None:
        rng = np.random.default_rng(self.seed)
        for split, count, flip in (("train", self.rows, self.flip), ("val", self.eval_rows, 0.0)):
            rows = (
                pair_rows(self.world, count, flip, rng)
                if self.labels
                else caption_rows(self.world, count, self.wrong, rng)
            )
            write_split(work, split, list(rows))


Row = tuple[str, Tensor, Tensor]


def pair_rows(world: ShapesWorld, count: int, flip: float, rng: np.random.Generator) -> Iterator[Row]:
    """Draw (caption, better image, worse image)."""
    for _ in range(count):
        caption = str(rng.choice(world.captions))
        contents, right = _two_contents(caption, rng)
        order = np.argsort(right)[::-1]
        if rng.random() < flip:
            order = order[::-1]
        chosen, rejected = (world.draw(contents[i], rng) for i in order)
        yield caption, chosen, rejected


def _two_contents(caption: str, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """What two images show, as captions, and their numbers of right attributes, which differ."""
    wanted = parse(caption)
    while True:
        contents = [
            tuple(_attribute(value, names, rng) for value, names in zip(wanted, (tuple(COLOURS), SHAPES), strict=True))
            for _ in range(2)
        ]
        right = [sum(a == b for a, b in zip(content, wanted, strict=True)) for content in contents]
        if right[0] != right[1]:
            return [f"a {colour} {shape}" for colour, shape in contents], right


def _attribute(wanted: str, names: tuple[str, ...], rng: np.random.Generator) -> str:
    """The wanted value with probability `RIGHT`, else one of the others."""
    return wanted if rng.random() < RIGHT else str(rng.choice([n for n in names if n != wanted]))


def caption_rows(world: ShapesWorld, count: int, wrong: float, rng: np.random.Generator) -> Iterator[Row]:
    """Draw (caption, its image, another image); the caption is wrong with a probability."""
    captions = [str(c) for c in rng.choice(world.captions, count + 1)]
    images = [world.draw(c, rng) for c in captions]
    for i in range(count):
        others = [c for c in world.captions if c != captions[i]]
        caption = str(rng.choice(others)) if rng.random() < wrong else captions[i]
        later = (images[(i + k) % len(images)] for k in range(1, len(images)))
        yield caption, images[i], next(image for image in later if not same_file(image, images[i]))


def same_file(first: Tensor, second: Tensor) -> bool:
    """Whether two images are the same in 8 bits."""
    return bool(((first * 255).round() == (second * 255).round()).all())


def write_split(folder: Path, split: str, rows: list[Row]) -> None:
    """Write `<split>.jsonl` and its images below `<split>/`."""
    chosen = write_images(folder, f"{split}/chosen", [r[1] for r in rows])
    rejected = write_images(folder, f"{split}/rejected", [r[2] for r in rows])
    lines = [{"caption": r[0], "chosen": a, "rejected": b} for r, a, b in zip(rows, chosen, rejected, strict=True)]
    write_jsonl(folder / f"{split}.jsonl", lines)
