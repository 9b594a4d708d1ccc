"""Which bands and number types an image file holds, and how long it is, by its header alone."""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from typing import BinaryIO

from PIL import TiffImagePlugin

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG2000_STARTS = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
NETCDF_STARTS = (b"CDF\1", b"CDF\2", b"CDF\5")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMBERS = {1: "uint", 2: "int", 3: "float", 5: "complex int", 6: "complex float"}
BITS, COMPRESSION, PHOTOMETRIC, BANDS, EXTRA, FORMAT = 258, 259, 262, 277, 338, 339  # tags
DATA_SIZES = (279, 325)  # tags: bytes of each strip, of each tile
DATA_STARTS = (273, 324)  # where they begin
CMYK = 5  # as the photometric interpretation
ALPHA = (1, 2)  # kinds of extra band that mean transparency
NETCDF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}  # by type
_PNM = re.compile(rb"P[56]\s(?:\s*#[^\n]*\n)*\s*\d+\s+\d+\s+(\d+)\s")


def is_raster(file: BinaryIO) -> bool:
    """Return whether a file holds other pixels than a photograph.

    A photograph has values of at most 8 bits in one band or three, or four of CMYK, with or
    without transparency, compressed in a way that Pillow knows. Everything else is read by
    :mod:`gersp_mm.images.rasters`.

    Args:
        file: A file of any kind, opened for reading; its position is changed.
    """
    start = file.read(256)
    if start.startswith((*JPEG2000_STARTS, *NETCDF_STARTS)):
        return True
    if start.startswith(PNG_START):
        return start[24:25] == b"\x10"  # bits of a value
    if found := _PNM.match(start):
        return int(found[1]) > 255
    tags = _tags(file) if start.startswith(TIFF_STARTS) else None
    if tags is None:
        return False
    bands, bits, number = _layout(tags)
    extra = tags.get(EXTRA, ())
    transparent = sum(kind in ALPHA for kind in (extra if isinstance(extra, tuple) else (extra,)))
    colours = 4 if tags.get(PHOTOMETRIC) == CMYK else 3
    return (
        bits > 8
        or number != "uint"
        or bands - transparent not in (1, colours)
        or tags.get(COMPRESSION, 1) not in TiffImagePlugin.COMPRESSION_INFO
    )


def cut_off(file: BinaryIO) -> str:
    """Return in words that a TIFF or netCDF-3 file is shorter than its header says.

    Args:
        file: A file of any kind, opened for reading; its position is changed.

    Returns:
        An empty text for a whole file, and for one of another format or of a damaged header.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(4)
    needed = 0
    if start.startswith(NETCDF_STARTS):
        needed = _netcdf_size(file, start[3])
    elif start.startswith(TIFF_STARTS) and (tags := _tags(file)) is not None:
        starts, sizes = (
            [value for tag in known for value in _many(tags.get(tag, ()))]
            for known in (DATA_STARTS, DATA_SIZES)
        )
        needed = max(map(sum, zip(starts, sizes)), default=0)
    return f"cut off: its header needs {needed:,} bytes, it has {size:,}" if needed > size else ""


def _many(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _netcdf_size(file: BinaryIO, version: int) -> int:
    """Return the bytes that a netCDF-3 file needs; 0 for a damaged header.

    Args:
        file: Positioned behind the four bytes that say the format.
        version: The last of these: 1, 2 or 5.
    """

    def numbers(form: str) -> tuple[int, ...]:
        return struct.unpack(f">{form}", file.read(struct.calcsize(f">{form}")))

    def skip(length: int) -> None:
        file.seek(length + -length % 4, io.SEEK_CUR)

    count, offset = ("q" if version == 5 else "i"), ("i" if version == 1 else "q")

    def list_length() -> int:
        return numbers(f"i{count}")[1]  # behind a tag

    def skip_attributes() -> None:
        for _ in range(list_length()):
            skip(numbers(count)[0])
            of_type, length = numbers(f"i{count}")
            skip(length * NETCDF_BYTES[of_type])

    try:
        records = numbers(count)[0]  # -1 where it was not known
        sides = []
        for _ in range(list_length()):
            skip(numbers(count)[0])
            sides.append(numbers(count)[0])  # 0: as many as there are records
        skip_attributes()
        fixed, recorded = [0], []
        for _ in range(list_length()):
            skip(numbers(count)[0])
            shape = [sides[number] for number in numbers(count * numbers(count)[0])]
            skip_attributes()
            of_type, padded, begin = numbers(f"i{count}{offset}")
            size = math.prod(shape[1:] if shape[:1] == [0] else shape) * NETCDF_BYTES[of_type]
            if shape[:1] == [0]:
                recorded.append((begin, size, padded))
            else:
                fixed.append(begin + size)
        step = recorded[0][1] if len(recorded) == 1 else sum(padded for *_, padded in recorded)
        ends = [begin + (records - 1) * step + size for begin, size, _ in recorded if records > 0]
        return max(fixed + ends)
    except (struct.error, KeyError, IndexError, OSError, ValueError):
        return 0


def _tags(file: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    """Return the tags of a TIFF, None where they are damaged."""
    try:
        file.seek(0)
        start = file.read(16)
        header = start if start[2] == 43 or start[3] == 43 else start[:8]
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
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
