"""Reading any ordinary image file as 8-bit RGB, strictly: a damaged file is an error."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from gersp_mm.images.packed import read_file
from gersp_mm.utils.errors import UserError

try:
    import simplejpeg
except ImportError:  # an optional extra
    simplejpeg = None

JPEG_START = b"\xff\xd8\xff"

# What the EXIF orientation tag asks for. PIL's own `exif_transpose` also rewrites the other tags,
# and fails on those that are malformed.
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


def load_rgb(path: str, backend_args: dict | None = None) -> Image.Image:
    """Decode one image file to 8-bit RGB.

    Greyscale, palette, CMYK, RGBA and 16-bit greyscale images are converted (transparency is
    dropped, 16 bit are scaled to 8) and EXIF rotation is applied. The size is not limited:
    Million-AID holds an image of 381 million pixels.

    Args:
        path: a file of any storage that ``mmengine.fileio`` reads, or an entry of an LMDB
            database, see :func:`gersp_mm.images.packed.read_file`.
        backend_args: see ``mmengine.fileio.get``.

    Raises:
        BadImageError: the file is missing, empty, truncated, no image, or of a kind without a
            defined 8-bit meaning (floating point).
    """
    return _decode_with_pil(_read(path, backend_args))


def load_pixels(path: str, backend_args: dict | None = None) -> torch.Tensor:
    """Decode one image file as :func:`load_rgb` does, JPEGs faster, to a 3×H×W uint8 RGB tensor.

    JPEGs are decoded by simplejpeg where it is installed and by torchvision elsewhere, which give
    PIL's values to the last bit. What they do not do as PIL does (CMYK, EXIF rotation, saying what
    is wrong with a file) is left to PIL.

    Args:
        path: see :func:`load_rgb`.
        backend_args: see :func:`load_rgb`.

    Raises:
        BadImageError: see :func:`load_rgb`.
    """
    content = _read(path, backend_args)
    if content.startswith(JPEG_START) and b"Exif\0\0" not in content:
        with contextlib.suppress(RuntimeError, ValueError):  # PIL says whether and why it is bad
            return _decode_jpeg(content)
    return pil_to_tensor(_decode_with_pil(content))


def _decode_jpeg(content: bytes) -> torch.Tensor:
    """Decode a greyscale or RGB JPEG to 3×H×W; raise ValueError or RuntimeError for any other."""
    if simplejpeg is None:
        pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return pixels if len(pixels) == 3 else pixels.expand(3, -1, -1)
    if simplejpeg.decode_jpeg_header(content)[2] not in ("YCbCr", "Gray", "RGB"):
        raise ValueError("not RGB")
    array = simplejpeg.decode_jpeg(content, fastdct=False, fastupsample=False)
    return torch.from_numpy(array).permute(2, 0, 1)


def _read(path: str, backend_args: dict | None) -> bytes:
    try:
        content = read_file(path, backend_args)
    except UserError:
        raise
    except Exception as error:  # storage backends raise errors of their own
        raise BadImageError(f"{type(error).__name__}: {error}") from error
    if not content:
        raise BadImageError("empty file")
    return content


def _decode_with_pil(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings(), unlimited_image_size():
            warnings.simplefilter("ignore")  # odd metadata does not make an image unusable
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return _upright(_to_rgb(image), image)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise BadImageError("not an image of a known format") from error
    except Exception as error:  # decoders raise nearly every type on damaged files
        raise BadImageError(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, which PIL may hold in 32 bits
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError(
                f"integer image with values from {values.min()} to {values.max()}; convert it to "
                "8 bit or unsigned 16 bit"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise BadImageError("floating-point image; convert it to 8 or 16 bit")
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def _upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    turn = None
    with contextlib.suppress(Exception):  # malformed metadata says nothing about the pixels
        turn = ORIENTATIONS.get(source.getexif().get(ORIENTATION_TAG, 1))
    return pixels if turn is None else pixels.transpose(turn)


@contextlib.contextmanager
def unlimited_image_size() -> Iterator[None]:
    """Lift PIL's limit on the number of pixels, which reading and cropping check, for a moment."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
