"""From the bytes of an image file to 8-bit RGB; what would be changed silently on the way is refused or counted."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pl_prefopt.datamodules.media.kind import Decoded, MediaKind
from pl_prefopt.utilities.checks import choice
from pl_prefopt.utilities.rows import DROP_HINT, BadRow

PLAIN_MODES = ("RGB", "L", "P", "1")
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "QOI", "PCX", "ICO"),
    *("SGI", "DDS"),
)
"""Formats of Pillow that are read: pixels only. EPS, PDF, WMF and others would start an interpreter or a plugin."""
MAX_ASPECT = 20
"""Longer images would have to be enlarged enormously before they fill a frame."""
WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of image that is not 8-bit RGB or grey.

    Args:
        matches: whether an image is of this kind.
        words: what it is called in errors.
        remedy: what the conversion does, in errors.
        convert: makes it 8-bit RGB or grey.
    """

    matches: Callable[[Image.Image], bool]
    words: str
    remedy: str
    convert: Callable[[Image.Image], Image.Image]


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _is_wide(image: Image.Image) -> bool:
    return image.mode in WIDE_MODES or any("16" in _raw_mode(tile[3]) for tile in getattr(image, "tile", []))


def _raw_mode(arguments: object) -> str:
    first = arguments if isinstance(arguments, str) else next(iter(arguments), "") if arguments else ""  # type: ignore
    return first if isinstance(first, str) else ""


def _is_animated(image: Image.Image) -> bool:
    return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"


def _over_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit greys by 255/65535 and floats in [0, 1] by 255.

    Deeper colour images Pillow itself decodes to their upper 8 bits.

    Raises:
        ValueError: values outside that range, whose white nobody knows.
    """
    if image.mode not in WIDE_MODES:
        return image
    values, white = np.asarray(image, np.float64), 1.0 if image.mode == "F" else 65535.0
    if not bool(((values >= 0) & (values <= white)).all()):
        raise ValueError(
            f"mode {image.mode} with values from {values.min():g} to {values.max():g}, outside 0 to {white:g}"
        )
    values = values * (255.0 / white)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


KINDS: dict[str, Kind] = {
    "animated": Kind(_is_animated, "an animation or several pages", "take the first frame", lambda image: image),
    "16bit": Kind(_is_wide, "more than 8 bits per channel", "keep the upper 8 bits", _eight_bits),
    "alpha": Kind(_has_alpha, "an alpha channel", "put it on white", _over_white),
    "cmyk": Kind(
        lambda image: image.mode == "CMYK",
        "CMYK colours",
        "convert it to RGB without a colour profile",
        lambda image: image.convert("RGB"),
    ),
}
"""In the order in which they are converted: the first frame, 8 bits, on white, RGB without a colour profile."""


def conversions(convert: bool | Collection[str]) -> frozenset[str]:
    """Return the kinds that may be converted: all, none, or those that are named.

    Raises:
        ValueError: a name is unknown.
    """
    if isinstance(convert, bool):
        return frozenset(KINDS) if convert else frozenset()
    for name in [convert] if isinstance(convert, str) else convert:
        choice("convert", name, KINDS)
    return frozenset([convert] if isinstance(convert, str) else convert)


def image_kind(convert: frozenset[str] = frozenset()) -> MediaKind[Image.Image]:
    """Return what the media layer has to know about images; those of the kinds in `convert` are converted."""
    aliases = {
        "caption": ("prompt", "text"),
        "image_0": ("jpg_0",),
        "image_1": ("jpg_1",),
        "images": ("image_path", "file_path"),
        "ranks": ("rank",),
        "scores": ("human_preference",),
    }
    settings = [2, MAX_ASPECT, sorted(convert)]
    return MediaKind("image", "pixels", partial(decode, convert=convert), settings, aliases, Image.Image.tobytes)


def decode(data: bytes, field: str, convert: frozenset[str] = frozenset()) -> Decoded[Image.Image]:
    """Return an RGB image, turned as its EXIF orientation says, and the kinds that were converted.

    Greys, palettes and 1-bit images become RGB without loss and are not counted.

    Raises:
        BadRow: the bytes are empty, no image, cut off, of zero size, or of a kind that may not be converted.
    """
    image = _opened(data, field)
    suffix, kinds = (image.format or "image").lower(), _kinds(image, field)
    for name in kinds:
        if name not in convert:
            kind = KINDS[name]
            hint = f"Set convert: [{name}] to {kind.remedy}, or on_bad_row: drop to leave such rows out and count them."
            raise BadRow(name, field, f"{kind.words} ({_summary(image)})", "8-bit RGB or grey", hint)
    if image.mode not in PLAIN_MODES and not kinds:
        found = f"the colour mode {image.mode} ({_summary(image)})"
        raise BadRow("colour_mode", field, found, "8-bit RGB or grey", DROP_HINT)
    image = ImageOps.exif_transpose(_loaded(image, field))  # before conversions, some of which forget the orientation
    for name in kinds:
        try:
            image = KINDS[name].convert(image)
        except ValueError as error:
            raise BadRow(name, field, str(error), "8-bit RGB or grey, or in a range that is known", DROP_HINT) from None
    image = image.convert("RGB")
    if max(image.size) > MAX_ASPECT * min(image.size):
        found = f"{image.width} x {image.height} pixels"
        raise BadRow(
            "aspect_ratio", field, found, f"an image with an aspect ratio of at most {MAX_ASPECT}:1", DROP_HINT
        )
    return Decoded(image, (image.height, image.width), kinds, suffix)


def _opened(data: bytes, field: str) -> Image.Image:
    if not data:
        raise BadRow("empty_image", field, "0 bytes", "the bytes of an image file", DROP_HINT)
    try:
        Image.init()
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        begin = data[:8].hex(" ")
        raise BadRow(
            "unreadable",
            field,
            f"{len(data)} bytes that are no image of a format that is read ({begin} ...)",
            _FILES,
            DROP_HINT,
        ) from None
    except Image.DecompressionBombError as error:
        raise BadRow("too_large", field, str(error), f"at most {Image.MAX_IMAGE_PIXELS} pixels", DROP_HINT) from None
    except Exception as error:
        raise _broken(error, field) from None
    if 0 in image.size:
        raise BadRow(
            "zero_size", field, f"an image of {image.width} x {image.height} pixels", "at least 1 x 1", DROP_HINT
        )
    return image


def _kinds(image: Image.Image, field: str) -> list[str]:
    try:
        return [name for name, kind in KINDS.items() if kind.matches(image)]
    except Exception as error:  # counting the frames of an animation reads all of it
        raise BadRow("truncated", field, f"a {image.format} that cannot be read ({error})", _FILES, _CUT) from None


def _loaded(image: Image.Image, field: str) -> Image.Image:
    try:
        image.seek(0)
        image.load()
    except Exception as error:
        raise BadRow("truncated", field, f"a {image.format} that cannot be decoded ({error})", _FILES, _CUT) from None
    return image


def _broken(error: Exception, field: str) -> BadRow:
    return BadRow("unreadable", field, f"an image whose header cannot be read ({error})", _FILES, _CUT)


def _summary(image: Image.Image) -> str:
    return f"{image.format}, mode {image.mode}, {image.width} x {image.height}"


_FILES = "a complete PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or other file of pixels"
_CUT = "It may have been cut off while copying; " + DROP_HINT[0].lower() + DROP_HINT[1:]
