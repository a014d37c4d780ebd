"""How a preview is shown, by its form: texts, ranked lists, pictures, sounds, point clouds."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Made = list[str] | list[list[str]] | Tensor
Shown = dict[int, Any]
SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Show:
    """One form of samples.

    Args:
        name: for messages.
        form: what `preview` returns.
        matches: whether samples have the form.
        write: (folder, conditions, step -> samples, Hz) writes files.
        tensorboard: (SummaryWriter, conditions, samples, step, Hz).
        wandb: (WandbLogger, conditions, samples, step, Hz).
    """

    name: str
    form: str
    matches: Callable[[Any], bool]
    write: Callable[[Path, Sequence[str], Shown, int], None]
    tensorboard: Callable[[Any, Sequence[str], Any, int, int], None]
    wandb: Callable[[Any, Sequence[str], Any, int, int], None]


def show_of(made: Any, count: int) -> Show:
    """Return the way to show `made`.

    Raises:
        TypeError: not one sample per condition, or no known form.
    """
    for show in SHOWS:
        if show.matches(made) and len(made) == count:
            return show
    found = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"{type(made).__name__} {made!r:.60}"
    forms = "; ".join(f"{s.name}: {s.form}" for s in SHOWS)
    raise TypeError(f"preview must return one sample for each of {count} conditions as {forms}; found {found}")


def table(conditions: Sequence[str], shown: Shown) -> str:
    """Markdown: a row per condition, a column per step."""

    def cell(made: Any) -> str:
        text = made if isinstance(made, str) else "\n".join(f"{i}. {item}" for i, item in enumerate(made, 1))
        return text.replace("|", "\\|").replace("\n", "<br>")

    head = ["condition", *(f"step {s}" for s in shown)]
    lines = [head, ["---"] * len(head)]
    lines += [[cell(c), *(cell(shown[s][i]) for s in shown)] for i, c in enumerate(conditions)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def figure(conditions: Sequence[str], shown: Shown, draw: Callable[[Any, Tensor], None]) -> Any:
    """Figure: a row per step, a column per condition; `draw(axes, sample)` fills a cell."""
    from matplotlib.figure import Figure

    whole = Figure(figsize=(1.6 * len(conditions), 1.7 * len(shown)), layout="constrained")
    axes = whole.subplots(len(shown), len(conditions), squeeze=False)
    for row, (step, samples) in zip(axes, shown.items(), strict=True):
        for place, sample, condition in zip(row, samples, conditions, strict=True):
            draw(place, sample)
            place.set_xticks([])
            place.set_yticks([])
            if step == next(iter(shown)):
                place.set_title(condition, fontsize=7)
        row[0].set_ylabel(f"step {step}", fontsize=7)
    return whole


def picture(axes: Any, sample: Tensor) -> None:
    """(1 or 3, H, W) in [0, 1]."""
    axes.imshow(sample.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy())


def spectrogram(axes: Any, sample: Tensor) -> None:
    """(T,) in [-1, 1]: level in dB below the loudest, down to -80, frequency upwards."""
    size = min(512, max(8, len(sample) // 8))
    bins = torch.stft(sample, size, window=torch.hann_window(size), return_complex=True, pad_mode="constant").abs()
    level = 20 * torch.log10((bins / bins.max().clamp(min=1e-9)).clamp(min=1e-4))
    axes.imshow(level.numpy(), origin="lower", aspect="auto", vmin=-80, vmax=0, cmap="magma")


def cloud(axes: Any, sample: Tensor) -> None:
    """(P, 3) in metres: seen from above, coloured by height."""
    x, y, z = sample.unbind(-1)
    axes.scatter(x.numpy(), y.numpy(), c=z.numpy(), s=0.5, cmap="viridis", linewidths=0)
    axes.set_aspect("equal")


def sound(file: Path, sample: Tensor, rate: int) -> None:
    """Mono WAV of 16 bits."""
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((sample.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes())


def as_array(whole: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(whole)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _texts(kind: type) -> Callable[[Any], bool]:
    return lambda made: isinstance(made, list) and len(made) > 0 and all(isinstance(m, kind) for m in made)


def _tensor(*shape: int | None) -> Callable[[Any], bool]:
    def fits(made: Any) -> bool:
        return isinstance(made, Tensor) and made.ndim == len(shape) + 1 and all(
            want in (None, have) for want, have in zip(shape, made.shape[1:], strict=True)
        )  # fmt: skip

    return fits


def _write_text(folder: Path, conditions: Sequence[str], shown: Shown, rate: int) -> None:
    (folder / "samples.md").write_text(table(conditions, shown), encoding="utf-8")


def _log_text(logger: Any, conditions: Sequence[str], made: Any, step: int, rate: int) -> None:
    rows = [[c, m if isinstance(m, str) else "\n".join(m)] for c, m in zip(conditions, made, strict=True)]
    logger.log_text("samples", columns=["condition", "sample"], data=rows, step=step)


def _draw(draw: Callable[[Any, Tensor], None]) -> Callable[[Path, Sequence[str], Shown, int], None]:
    def write(folder: Path, conditions: Sequence[str], shown: Shown, rate: int) -> None:
        figure(conditions, shown, draw).savefig(folder / "samples.png", dpi=120)

    return write


def _write_sounds(folder: Path, conditions: Sequence[str], shown: Shown, rate: int) -> None:
    _draw(spectrogram)(folder, conditions, shown, rate)
    for step, samples in shown.items():
        for i, sample in enumerate(samples):
            sound(folder / f"sample-{i}-step-{step}.wav", sample, rate)


def _log_sounds(writer: Any, conditions: Sequence[str], made: Tensor, step: int, rate: int) -> None:
    for i, sample in enumerate(made):
        writer.add_audio(f"samples/{i}", sample[None].clamp(-1, 1), step, sample_rate=rate)
    writer.add_figure("samples", figure(conditions, {step: made}, spectrogram), step)


PICTURES = {
    "write": _draw(picture),
    "tensorboard": lambda writer, _, made, step, __: writer.add_images("samples", made, step),
    "wandb": lambda log, names, made, step, _: log.log_image("samples", list(made), step=step, caption=list(names)),
}
TEXTS = {
    "write": _write_text,
    "tensorboard": lambda writer, names, made, step, _: writer.add_text("samples", table(names, {step: made}), step),
    "wandb": _log_text,
}
SHOWS = (
    Show("texts", "list of str", _texts(str), **TEXTS),
    Show("ranked lists", "list of lists of str, best first", _texts(list), **TEXTS),
    Show("pictures", "(N, 3, H, W) in [0, 1]", _tensor(3, None, None), **PICTURES),
    Show("grey pictures", "(N, 1, H, W) in [0, 1]", _tensor(1, None, None), **PICTURES),
    Show(
        "sounds", "(N, T) in [-1, 1]", _tensor(None), _write_sounds, _log_sounds,
        lambda log, names, made, step, rate: log.log_audio(
            "samples", [m.numpy() for m in made], step=step, sample_rate=[rate] * len(made), caption=list(names)
        ),
    ),
    Show(
        "point clouds", "(N, P, 3) in metres", _tensor(None, 3), _draw(cloud),
        lambda writer, names, made, step, _: writer.add_figure("samples", figure(names, {step: made}, cloud), step),
        lambda log, names, made, step, _: log.log_image(
            "samples", [as_array(figure(names, {step: made}, cloud))], step=step
        ),
    ),
)  # fmt: skip
