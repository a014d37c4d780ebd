"""How the samples of a preview are written and logged, by their form: texts, lists, images, sounds, point clouds.

Legend: N samples, one per condition; H, W pixels; T sound samples; P points.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pl_prefopt.utilities.files import write_text

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

Preview = list[str] | list[list[str]] | Tensor
"""One sample per condition."""
Draw = Callable[["Axes", Tensor], None]
"""Draws one sample into a cell of a figure."""
Write = Callable[[Path, Sequence[str], Mapping[int, Any], int], None]
"""(folder, conditions, optimizer step -> preview, sample rate in Hz): writes files."""
LogTensorBoard = Callable[["SummaryWriter", Sequence[str], Any, int, int], None]
"""(writer, conditions, preview, optimizer step, sample rate in Hz)."""
LogWandb = Callable[["WandbLogger", Sequence[str], Any, int, int], None]
"""(logger, conditions, preview, optimizer step, sample rate in Hz)."""
SAMPLE_RATE = 16_000
"""Hz, for modules that have no `sample_rate`."""


@dataclass(frozen=True)
class Form:
    """One form of samples.

    Args:
        name: for messages.
        description: what `preview` returns in this form, for messages.
        matches: whether a preview has the form.
        write: writes all previews to the run folder.
        tensorboard: logs one preview to TensorBoard.
        wandb: logs one preview to W&B.
    """

    name: str
    description: str
    matches: Callable[[object], bool]
    write: Write
    tensorboard: LogTensorBoard
    wandb: LogWandb


def form_of(preview: object, count: int) -> Form:
    """Return the form of a preview of `count` conditions.

    Raises:
        TypeError: not one sample per condition, or no known form.
    """
    for form in FORMS:
        if form.matches(preview) and len(preview) == count:  # type: ignore[arg-type]
            return form
    kind = type(preview).__name__
    actual = f"shape {tuple(preview.shape)}" if isinstance(preview, Tensor) else f"{kind} {preview!r:.60}"
    accepted = "; ".join(f"{form.name}: {form.description}" for form in FORMS)
    raise TypeError(f"preview must return one sample for each of {count} conditions as {accepted}, got {actual}")


# ---- texts -----------------------------------------------------------------------------------------------------------


def table(conditions: Sequence[str], previews: Mapping[int, Sequence[str] | Sequence[list[str]]]) -> str:
    """Markdown: a row per condition, a column per step; ranked lists are numbered."""

    def cell(sample: str | list[str]) -> str:
        text = sample if isinstance(sample, str) else "\n".join(f"{i}. {item}" for i, item in enumerate(sample, 1))
        return text.replace("|", "\\|").replace("\n", "<br>")

    head = ["condition", *(f"step {step}" for step in previews)]
    lines = [head, ["---"] * len(head)]
    for i, condition in enumerate(conditions):
        lines.append([cell(condition), *(cell(preview[i]) for preview in previews.values())])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_table(folder: Path, conditions: Sequence[str], previews: Mapping[int, Any], rate: int) -> None:
    """Write `samples.md`."""
    write_text(folder / "samples.md", table(conditions, previews))


def log_table(
    logger: WandbLogger, conditions: Sequence[str], preview: Sequence[str] | Sequence[list[str]], step: int, rate: int
) -> None:
    """Log a W&B table of two columns."""
    rows = [[c, s if isinstance(s, str) else "\n".join(s)] for c, s in zip(conditions, preview, strict=True)]
    logger.log_text("samples", columns=["condition", "sample"], data=rows, step=step)


# ---- figures ---------------------------------------------------------------------------------------------------------


def figure(conditions: Sequence[str], previews: Mapping[int, Tensor], draw: Draw) -> Figure:
    """Figure: a row per step, a column per condition; `draw(axes, sample)` fills a cell."""
    from matplotlib.figure import Figure

    grid = Figure(figsize=(1.6 * len(conditions), 1.7 * len(previews)), layout="constrained")
    cells = grid.subplots(len(previews), len(conditions), squeeze=False)
    for row, (step, preview) in zip(cells, previews.items(), strict=True):
        for axes, sample in zip(row, preview, strict=True):
            draw(axes, sample)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(f"step {step}", fontsize=7)
    for axes, condition in zip(cells[0], conditions, strict=True):
        axes.set_title(condition, fontsize=7)
    return grid


def draw_image(axes: Axes, sample: Tensor) -> None:
    """(1 or 3, H, W) in [0, 1]."""
    axes.imshow(sample.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy())


def draw_spectrogram(axes: Axes, sample: Tensor) -> None:
    """(T,) in [-1, 1]: level in dB below the loudest, down to -80, frequency upwards."""
    size = min(512, max(8, len(sample) // 8))
    bins = torch.stft(sample, size, window=torch.hann_window(size), return_complex=True, pad_mode="constant").abs()
    level = 20 * torch.log10((bins / bins.max().clamp(min=1e-9)).clamp(min=1e-4))
    axes.imshow(level.numpy(), origin="lower", aspect="auto", vmin=-80, vmax=0, cmap="magma")


def draw_point_cloud(axes: Axes, sample: Tensor) -> None:
    """(P, 3) in metres: seen from above, coloured by height."""
    x, y, z = sample.unbind(-1)
    axes.scatter(x.numpy(), y.numpy(), c=z.numpy(), s=0.5, cmap="viridis", linewidths=0)
    axes.set_aspect("equal")


def figure_writer(draw: Draw) -> Write:
    """Return a function that writes `samples.png`."""

    def write(folder: Path, conditions: Sequence[str], previews: Mapping[int, Tensor], rate: int) -> None:
        figure(conditions, previews, draw).savefig(folder / "samples.png", dpi=120)

    return write


def pixels(grid: Figure) -> np.ndarray:
    """(H, W, 3) uint8 of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(grid)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# ---- sounds ----------------------------------------------------------------------------------------------------------


def write_sound(file: Path, sample: Tensor, rate: int) -> None:
    """Write a mono WAV of 16 bits."""
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((sample.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes())


def write_sounds(folder: Path, conditions: Sequence[str], previews: Mapping[int, Tensor], rate: int) -> None:
    """Write spectrograms, and a WAV file per sample and step."""
    figure_writer(draw_spectrogram)(folder, conditions, previews, rate)
    for step, preview in previews.items():
        for i, sample in enumerate(preview):
            write_sound(folder / f"sample-{i}-step-{step}.wav", sample, rate)


def log_sounds(writer: SummaryWriter, conditions: Sequence[str], preview: Tensor, step: int, rate: int) -> None:
    """Log sounds and spectrograms to TensorBoard."""
    for i, sample in enumerate(preview):
        writer.add_audio(f"samples/{i}", sample[None].clamp(-1, 1), step, sample_rate=rate)
    writer.add_figure("samples", figure(conditions, {step: preview}, draw_spectrogram), step)


# ---- all forms -------------------------------------------------------------------------------------------------------


def is_list_of(kind: type) -> Callable[[object], bool]:
    """Return a test for lists of at least one element, all of one type."""
    return lambda preview: isinstance(preview, list) and bool(preview) and all(isinstance(s, kind) for s in preview)


def has_sample_shape(*shape: int | None) -> Callable[[object], bool]:
    """Return a test for tensors whose samples have a shape; None: any size."""

    def fits(preview: object) -> bool:
        return (
            isinstance(preview, Tensor)
            and preview.ndim == len(shape) + 1
            and all(size in (None, actual) for size, actual in zip(shape, preview.shape[1:], strict=True))
        )

    return fits


TEXT_OUTPUTS: dict[str, Any] = {
    "write": write_table,
    "tensorboard": lambda writer, names, preview, step, _: writer.add_text(
        "samples", table(names, {step: preview}), step
    ),
    "wandb": log_table,
}
IMAGE_OUTPUTS: dict[str, Any] = {
    "write": figure_writer(draw_image),
    "tensorboard": lambda writer, names, preview, step, _: writer.add_images("samples", preview, step),
    "wandb": lambda logger, names, preview, step, _: logger.log_image(
        "samples", list(preview), step=step, caption=list(names)
    ),
}
# The first form that matches is taken. No two match the same preview, as long as a point cloud (N, P, 3) has three
# dimensions and an image four.
FORMS = (
    Form("texts", "list of str", is_list_of(str), **TEXT_OUTPUTS),
    Form("ranked lists", "list of lists of str, best first", is_list_of(list), **TEXT_OUTPUTS),
    Form("images", "(N, 3, H, W) in [0, 1]", has_sample_shape(3, None, None), **IMAGE_OUTPUTS),
    Form("grey images", "(N, 1, H, W) in [0, 1]", has_sample_shape(1, None, None), **IMAGE_OUTPUTS),
    Form(
        "sounds",
        "(N, T) in [-1, 1]",
        has_sample_shape(None),
        write_sounds,
        log_sounds,
        lambda logger, names, preview, step, rate: logger.log_audio(
            "samples",
            [sample.numpy() for sample in preview],
            step=step,
            sample_rate=[rate] * len(preview),
            caption=list(names),
        ),
    ),
    Form(
        "point clouds",
        "(N, P, 3) in metres",
        has_sample_shape(None, 3),
        figure_writer(draw_point_cloud),
        lambda writer, names, preview, step, _: writer.add_figure(
            "samples", figure(names, {step: preview}, draw_point_cloud), step
        ),
        lambda logger, names, preview, step, _: logger.log_image(
            "samples", [pixels(figure(names, {step: preview}, draw_point_cloud))], step=step
        ),
    ),
)
