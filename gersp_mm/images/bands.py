"""Bands and number types of image files, and the information that 8-bit RGB loses."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, TiffImagePlugin

PNG_START = b"\x89PNG\r\n\x1a\n"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMBERS = {1: "uint", 2: "int", 3: "float", 5: "complex int", 6: "complex float"}
BITS, PHOTOMETRIC, BANDS, EXTRA, FORMAT, NODATA = 258, 262, 277, 338, 339, 42113  # tags
DATA_SIZES = (279, 325)  # tags: bytes of each strip, of each tile
CMYK = 5  # as the photometric interpretation
ALPHA = (1, 2)  # kinds of extra band that mean transparency
FEW_LEVELS = 128  # grey levels of 256; ordinary images have more
EXAMINED = 2048  # evenly spread rows and columns of a large image


def describe_tiff(content: bytes) -> str | None:
    """Return the bands of a TIFF in words, such as ``1 band x int16, nodata -9999``.

    Args:
        content: The bytes of a file of any kind.

    Returns:
        The words, or None if the file is no TIFF or its header is damaged.
    """
    tags = _tags(content)
    if tags is None:
        return None
    bands, bits, number = _layout(tags)
    words = f"{bands} band{'s' if bands > 1 else ''} x {number}{bits}"
    nodata = str(tags.get(NODATA, "")).strip("\0 ")
    return f"{words}, nodata {nodata}" if nodata else words


def name_loss(content: bytes, decode: Callable[[], np.ndarray]) -> str | None:
    """Return what a file loses as 8-bit RGB, in words: grey levels of 16 bits, or a fourth band.

    Transparency is no loss, nor are the lower bytes of 16-bit values that use their whole range.

    Args:
        content: The bytes of an image file.
        decode: Function that returns the decoded image, H×W×3 uint8; called only if the header
            requires it.

    Returns:
        The words, or None if nothing is lost.
    """
    tags = _tags(content)
    extra = tags.get(EXTRA, ()) if tags else ()
    bands, bits, _ = _layout(tags) if tags else (0, 0, "")
    transparent = any(kind in ALPHA for kind in (extra if isinstance(extra, tuple) else (extra,)))
    colours = 4 if tags and tags.get(PHOTOMETRIC) == CMYK else 3
    if bits == 8 and bands > colours and not transparent:
        return f"{bands} bands x uint8, of which only the first {colours} are used"
    is_png = content.startswith(PNG_START) and content[24:25] == b"\x10"
    if not (is_png or bits > 8):
        return None
    pixels = decode()
    step = max(1, max(pixels.shape) // EXAMINED)
    left = max(len(np.unique(pixels[::step, ::step, band])) for band in range(3))
    if left >= FEW_LEVELS or left >= _grey_levels(content, step):
        return None
    kind = describe_tiff(content) or "16-bit"
    return f"{kind}, of which only the high byte is used: {left} grey levels remain"


def _grey_levels(content: bytes, step: int) -> float:
    """Return the number of different values of a greyscale image, infinity for other images."""
    with Image.open(io.BytesIO(content)) as image:
        if not image.mode.startswith("I"):
            return np.inf
        return len(np.unique(np.asarray(image)[::step, ::step]))


def _tags(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    if not content.startswith(TIFF_STARTS):
        return None
    try:
        header = content[:16] if content[2] == 43 or content[3] == 43 else content[:8]
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file = io.BytesIO(content)
        file.seek(directory.next)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Odd metadata; a truncated file is found below.
            directory.load(file)
        _layout(directory)
        return directory if any(tag in directory for tag in DATA_SIZES) else None
    except (OSError, SyntaxError, struct.error, ValueError, TypeError, KeyError, IndexError):
        return None


def _layout(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[int, int, str]:
    """Return the number of bands, the bits of a value, and its number type without the bits."""

    def first(tag: int, default: int) -> int:
        value = tags.get(tag, default)
        return int(value[0] if isinstance(value, tuple) else value)

    return first(BANDS, 1), first(BITS, 1), NUMBERS.get(first(FORMAT, 1), "unknown ")
