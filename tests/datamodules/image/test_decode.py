from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pl_prefopt.datamodules.image.decode import KINDS, conversions, image_kind
from pl_prefopt.utilities.rows import BadRow
from tests.datamodules.sample_images import encoded, noise


def decode(data: bytes, field: str, convert: frozenset[str] = frozenset()) -> tuple[Image.Image, list[str]]:
    decoded = image_kind(convert).decode(data, field)
    assert decoded.size == (decoded.media.height, decoded.media.width)
    return decoded.media, list(decoded.changed)


def png16(colour: int = 2) -> bytes:
    """A 2 x 1 PNG of 16 bits per channel, colour type 2 (RGB) or 0 (grey), all values 0x8100."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    line = b"\0" + b"\x81\x00" * (3 if colour == 2 else 1) * 2
    head = struct.pack(">IIBBBBB", 2, 1, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(line)) + chunk(b"IEND", b"")


def zero_png() -> bytes:
    data = png16()
    return data[:16] + struct.pack(">II", 0, 0) + data[24:]


def animation() -> bytes:
    return encoded(noise(0), "GIF", save_all=True, append_images=[noise(1)])


RGBA = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty_image"),
    "text": (b"not an image at all", "unreadable"),
    "zero": (zero_png(), "zero_size|unreadable"),
    "truncated jpeg": (encoded(noise(0, 96, 128), "JPEG")[:-200], "truncated"),
    "truncated png": (encoded(noise(0))[:-200], "truncated"),
    "header only": (encoded(noise(0))[:20], "unreadable"),
    "16 bit colour": (png16(), "16bit"),
    "16 bit grey": (png16(0), "16bit"),
    "16 bit tiff": (encoded(Image.fromarray(np.full((2, 2), 40000, np.uint16)), "TIFF"), "16bit"),
    "float": (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "16bit"),
    "cmyk": (encoded(noise(0).convert("CMYK"), "JPEG"), "cmyk"),
    "animated": (animation(), "animated"),
    "cut animation": (animation()[:-30], "truncated|animated"),
    "alpha": (encoded(RGBA), "alpha"),
    "grey with alpha": (encoded(RGBA.convert("LA")), "alpha"),
    "transparent palette": (encoded(Image.new("P", (2, 1)), transparency=0), "alpha"),
    "lab": (encoded(Image.new("LAB", (2, 1)), "TIFF"), "colour_mode"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(BadRow, match=r"field .jpg_0. must be .+, got .+\. .+") as caught:
        decode(data, "jpg_0")
    assert caught.value.reason in reason.split("|")


@pytest.mark.parametrize("image", [noise(0), noise(0).convert("L"), noise(0).convert("P"), noise(0).convert("1")])
def test_plain_images_lose_nothing(image: Image.Image) -> None:
    found, changed = decode(encoded(image), "chosen")
    assert changed == []
    assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("16 bit colour", 0x81), ("16 bit grey", 0x80), ("16 bit tiff", 156), ("alpha", 255)],
)
def test_values_after_conversion(name: str, expected: int) -> None:
    found, changed = decode(BAD[name][0], "chosen", conversions(True))
    assert changed == [BAD[name][1]]
    assert np.asarray(found)[..., 1].tolist()[0][0] == expected


def test_first_frame_and_cmyk() -> None:
    still, _ = decode(animation(), "chosen", conversions(["animated", "alpha"]))
    assert np.abs(np.asarray(still, float) - np.asarray(noise(0), float)).mean() < 6
    colours, _ = decode(encoded(noise(0).convert("CMYK"), "JPEG", quality=95), "chosen", conversions("cmyk"))
    assert np.abs(np.asarray(colours, float) - np.asarray(noise(0), float)).mean() < 6


def test_only_named_kinds_are_converted() -> None:
    with pytest.raises(BadRow, match=r"convert: \[alpha\] to put it on white"):
        decode(BAD["alpha"][0], "chosen", conversions(["cmyk"]))
    with pytest.raises(ValueError, match=r"convert must be one of .*, got 'alfa'\. Did you mean 'alpha'"):
        conversions(["alfa"])
    assert conversions(True) == frozenset(KINDS)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found, _ = decode(encoded(noise(0, 24, 32), "PNG", exif=exif), "chosen")
    assert found.size == (24, 32)
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(noise(0, 24, 32)), 3))


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(BadRow, match="at most 300 pixels") as caught:
        decode(encoded(noise(0)), "chosen")
    assert caught.value.reason == "too_large"


def test_a_stereo_photo_of_a_camera_is_no_animation() -> None:
    out = io.BytesIO()
    noise(0).save(out, "MPO", save_all=True, append_images=[noise(1)])
    assert decode(out.getvalue(), "chosen")[1] == []


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "I;16", "F"])
def test_the_orientation_survives_conversions(mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    if mode in ("I;16", "F"):
        values = np.asarray(noise(0, 24, 32).convert("L"), np.float32) / 255
        image = Image.fromarray(values if mode == "F" else (values * 65535).astype(np.uint16))
    else:
        image = noise(0, 24, 32).convert(mode)
    file = "PNG" if mode in ("RGBA", "LA") else "TIFF"
    found, changed = decode(encoded(image, file, exif=exif), "chosen", conversions(True))
    upright, _ = decode(encoded(image, file), "chosen", conversions(True))
    assert len(changed) == 1
    assert np.array_equal(np.asarray(found), np.rot90(np.asarray(upright), 3))


def test_floats_are_read_from_zero_to_one() -> None:
    values = np.array([[0, 0.5, 1]], np.float32)
    found, _ = decode(encoded(Image.fromarray(values), "TIFF"), "chosen", conversions("16bit"))
    assert np.asarray(found)[0, :, 0].tolist() == [0, 128, 255]
    for bad in (values * 255, values - 1, values * np.nan):
        with pytest.raises(BadRow, match=r"got mode F with values from .* outside 0 to 1\."):
            decode(encoded(Image.fromarray(bad), "TIFF"), "chosen", conversions("16bit"))


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (1, 21)])
def test_extreme_aspect_ratios_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(BadRow, match="an aspect ratio of at most 20:1, got"):
        decode(encoded(Image.new("RGB", size)), "chosen")
    assert decode(encoded(Image.new("RGB", (20, 1))), "chosen")[1] == []
