"""Strict reading of image files as 8-bit RGB: a damaged file is an error."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from gersp_mm.images.bands import TIFF_STARTS, cut_off, is_raster
from gersp_mm.images.packed import read_file
from gersp_mm.images.pixels import BandsError, PixelScale
from gersp_mm.images.rasters import RasterError
from gersp_mm.images.scaling import raster_to_rgb
from gersp_mm.utils.errors import UserError

try:
    import simplejpeg
except ImportError:  # The package is an optional extra.
    simplejpeg = None

JPEG_START = b"\xff\xd8\xff"

# Largest number of pixels. Million-AID's largest image has 381 million.
MAX_PIXELS = 2**29
# Images of fewer pixels (200 MB when decoded) are decoded regardless of the size of their file.
CHEAP_PIXELS = 2**26
# Deflate packs at most 1,032 bytes into one, so that 8-bit PNG and TIFF images of one constant
# colour stay below this; JPEGs do too, with at least one bit for each block of 64 pixels.
MAX_PIXELS_PER_BYTE = 1_100

# libjpeg's messages about damaged pixels. Its other warnings are about odd headers.
_DAMAGE = re.compile(r"(Corrupt JPEG data: |Premature end of JPEG file)[^\n]*")
_TRUNCATED = "Image is incomplete or truncated"  # torchvision's words for the latter
_stderr_lock = threading.Lock()
_limit_lock = threading.Lock()
_limit, _inside = Image.MAX_IMAGE_PIXELS, 0

# Transposition for each value of the EXIF orientation. PIL's `exif_transpose` also rewrites the
# other tags and fails on malformed ones.
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(OSError):
    """An image file that cannot be used; the message is the reason."""


class EmptyWindowError(BadImageError):
    """A window of an intact scene that has too few pixels with data."""


def load_rgb(
    path: str, backend_args: dict | None = None, scale: PixelScale | None = None
) -> Image.Image:
    """Decode one image file to 8-bit RGB.

    Photographs keep their values: greyscale, palette, CMYK and RGBA images are converted
    (transparency is dropped) and EXIF rotation is applied. Rasters (more than 8 bits, or other
    bands than a photograph has) go through a pixel scale. The size may be up to
    :data:`MAX_PIXELS`: Million-AID holds an image of 381 million pixels.

    Args:
        path: A file of any storage that ``mmengine.fileio`` reads, or an entry of an LMDB
            database, see :func:`gersp_mm.images.packed.read_file`.
        backend_args: See ``mmengine.fileio.get``.
        scale: Bands and limits of rasters; None stretches each by the 0.5 and 99.5 per cent points
            of its own values.

    Raises:
        BadImageError: The file is missing, empty, truncated or damaged, no image, of bands of
            which none are chosen, or needs more memory than there is; or its header claims more
            pixels than :data:`MAX_PIXELS`, or more than the bytes behind it can hold.
        UserError: A raster is met and rasterio is not installed.
    """
    return _decode(_read(path, backend_args), scale)


def load_pixels(
    path: str, backend_args: dict | None = None, scale: PixelScale | None = None
) -> torch.Tensor:
    """Decode one image file as :func:`load_rgb` does, to a 3×H×W uint8 RGB tensor.

    Args:
        path: See :func:`load_rgb`.
        backend_args: See :func:`load_rgb`.
        scale: See :func:`load_rgb`.

    Raises:
        BadImageError: The file cannot be used, see :func:`load_rgb`.
        UserError: See :func:`load_rgb`.
    """
    decoded = _decode(_read(path, backend_args), scale, as_tensor=True)
    return decoded if isinstance(decoded, torch.Tensor) else pil_to_tensor(decoded)


def _decode(content: bytes, scale: PixelScale | None, as_tensor: bool = False) -> Any:
    """Decode an image to a PIL image or, where the decoder gives one, to a 3×H×W tensor.

    JPEGs are decoded by simplejpeg where it is installed and by torchvision elsewhere. They give
    PIL's values to the last bit and, unlike PIL, report damaged files. PIL decodes other kinds of
    JPEG (CMYK).
    """
    try:
        if content.startswith(JPEG_START):
            check_size(*_jpeg_size(content), len(content))
            pixels = _decode_jpeg(content)
            turned = b"Exif\0\0" in content
            if pixels is not None and as_tensor and not turned:
                return pixels.permute(2, 0, 1)
            if pixels is not None:
                image = Image.fromarray(pixels.contiguous().numpy())
                return _upright(image, content) if turned else image
        if is_raster(io.BytesIO(content)):
            levels = raster_to_rgb(content, scale, check_size)
            if as_tensor:
                return torch.from_numpy(levels)
            return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))
        return _decode_with_pil(content)
    except (RasterError, BandsError) as error:
        raise BadImageError(str(error)) from error
    except MemoryError as error:
        raise BadImageError("not enough memory to decode it") from error


def check_size(width: int, height: int, size: int, group4: bool = False) -> None:
    """Refuse an image whose header claims more pixels than there can be.

    Args:
        width: Width in pixels according to the header.
        height: Height in pixels according to the header.
        size: Length of the file in bytes.
        group4: Whether it is a Group 4 TIFF, which takes at least one bit for each line.

    Raises:
        BadImageError: The image has more than :data:`MAX_PIXELS` pixels, or more than
            :data:`CHEAP_PIXELS` and more for each byte than compression reaches.
    """
    pixels = width * height
    claim = f"its header claims {width:,} x {height:,} pixels in {size:,} bytes"
    if pixels > MAX_PIXELS:
        raise BadImageError(f"{claim}, more than the limit of {MAX_PIXELS:,} pixels")
    limit = 8 * width if group4 else MAX_PIXELS_PER_BYTE
    if pixels > CHEAP_PIXELS and pixels > limit * size:
        raise BadImageError(f"{claim}, more than the limit of {limit:,} pixels for each byte")


def _jpeg_size(content: bytes) -> tuple[int, int]:
    """Return the width and height in a JPEG's header, or (0, 0) if it has none."""
    at = 2
    while at + 9 < len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of a frame
            height, width = content[at + 5 : at + 7], content[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        elif marker == 0xDA:  # the pixels begin
            break
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 0, 0


def _decode_jpeg(content: bytes) -> torch.Tensor | None:
    """Return a greyscale or RGB JPEG as H×W×3, or None for any other kind.

    Raises:
        BadImageError: libjpeg found the pixels damaged.
    """
    if simplejpeg is not None:
        try:
            if simplejpeg.decode_jpeg_header(content)[2] in ("YCbCr", "Gray", "RGB"):
                array = simplejpeg.decode_jpeg(content, fastdct=False, fastupsample=False)
                return torch.from_numpy(array)
        except ValueError as error:
            _refuse_damage(str(error))
    with _decoder_messages() as said:
        try:
            pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        except RuntimeError as error:
            pixels = None
            said.append(str(error))
    _refuse_damage("".join(said))
    if pixels is None or len(pixels) not in (1, 3):
        return None
    return pixels.expand(3, -1, -1).permute(1, 2, 0)


def _refuse_damage(message: str) -> None:
    if found := _DAMAGE.search(message):
        raise BadImageError(found[0])
    if _TRUNCATED in message:
        raise BadImageError("Premature end of JPEG file")


@contextlib.contextmanager
def _decoder_messages() -> Iterator[list[str]]:
    """Collect the warnings that libjpeg writes to the standard error.

    The descriptor belongs to the process, so only one thread may do this at a time. Other output is
    passed on.
    """
    said: list[str] = []
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # The standard error is closed.
            yield said
            return
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            with open(reader, "rb") as messages:
                text = messages.read().decode("utf-8", "surrogateescape")
            said.append(text)
            if others := _DAMAGE.sub("", text).strip():
                os.write(2, others.encode("utf-8", "surrogateescape"))


def _read(path: str, backend_args: dict | None) -> bytes:
    try:
        content = read_file(path, backend_args)
    except UserError:
        raise
    except Exception as error:  # Storage backends raise their own types of errors.
        raise BadImageError(f"{type(error).__name__}: {error}") from error
    if not content:
        raise BadImageError("empty file")
    return content


def _decode_with_pil(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings(), unlimited_image_size():
            warnings.simplefilter("ignore")  # Odd metadata do not matter.
            with Image.open(io.BytesIO(content)) as image:
                group4 = image.info.get("compression") == "group4"
                check_size(*image.size, len(content), group4)
                image.load()
                plain = image.convert("RGBA") if image.mode == "P" else image
                return _turned(plain.convert("RGB"), image)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # Decoders raise nearly every type on damaged files.
        if isinstance(error, UnidentifiedImageError):  # Its text holds a memory address.
            tiff = content.startswith(TIFF_STARTS)
            said = "TIFF, damaged or cut off" if tiff else "not an image of a known format"
            raise BadImageError(said) from error
        words = cut_off(io.BytesIO(content)) or f"{type(error).__name__}: {error}"
        raise BadImageError(words) from error


def _upright(pixels: Image.Image, content: bytes) -> Image.Image:
    with contextlib.suppress(Exception), unlimited_image_size(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Malformed metadata do not affect the pixels.
        with Image.open(io.BytesIO(content)) as source:
            return _turned(pixels, source)
    return pixels


def _turned(pixels: Image.Image, source: Image.Image) -> Image.Image:
    turn = None
    with contextlib.suppress(Exception):  # as above
        turn = ORIENTATIONS.get(source.getexif().get(ORIENTATION_TAG, 1))
    return pixels if turn is None else pixels.transpose(turn)


@contextlib.contextmanager
def unlimited_image_size() -> Iterator[None]:
    """Lift PIL's limit on the number of pixels while any thread is inside the context."""
    global _limit, _inside
    with _limit_lock:
        if not _inside:
            _limit = Image.MAX_IMAGE_PIXELS
        _inside += 1
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _limit_lock:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit
