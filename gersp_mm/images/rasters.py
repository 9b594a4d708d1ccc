"""Reading the values and validity of rasters (GeoTIFF, JPEG2000, 16-bit PNG) with rasterio.

The only file that imports rasterio, and only once a raster is read.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gersp_mm.images.bands import (
    JPEG2000_STARTS,
    NETCDF_STARTS,
    PNG_START,
    TIFF_STARTS,
    cut_off,
)
from gersp_mm.utils.errors import UserError, listed

# The formats that are read, by GDAL's names. VRT is not among them: it is text that names other
# files.
STARTS = {
    "GTiff": TIFF_STARTS,
    "JP2OpenJPEG": JPEG2000_STARTS,
    "PNG": (PNG_START,),
    "PNM": (b"P5", b"P6"),
    "netCDF": NETCDF_STARTS,
}
CACHE_MB = 64  # of GDAL's blocks, in each process
MAX_OPEN = 16  # files that a thread keeps open
OPTIONS = dict(GDAL_CACHEMAX=CACHE_MB)
# How rasterio calls a file that it reads from memory: a name drawn for each.
_IN_MEMORY = re.compile(r"(/vsimem/)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[^\s,:]*(, |: | )?")


class RasterError(OSError):
    """A raster that cannot be read; the message is the reason."""


class RasterInfo(NamedTuple):
    """The facts in the header of a raster.

    Attributes:
        width: In pixels.
        height: In pixels.
        dtype: Name of the values' type, such as ``uint16``.
        bands: Numbers of the bands that hold an image, from 1; a transparency band is left out.
        transparency: Numbers of the bands that are marked as transparency.
        names: A name for each of ``bands``: the file's own or the colour that it stands for;
            empty where the file says nothing.
        nodata: The value that stands for no data, None where no value does.
        scales: Factor of each of ``bands``, 1 where the file has none.
        offsets: Summand of each of ``bands`` after the factor, 0 where the file has none.
        crs: Reference system of the coordinates as text, empty where there is none.
        pixel_size: Side of a pixel in metres; None where it is not known.
    """

    width: int
    height: int
    dtype: str
    bands: tuple[int, ...]
    names: tuple[str, ...]
    nodata: float | None
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    crs: str
    pixel_size: float | None
    transparency: tuple[int, ...] = ()

    @classmethod
    def of_array(cls, values: np.ndarray) -> RasterInfo:
        """Return the facts of an array H×W×bands."""
        height, width, count = values.shape
        bands = tuple(range(1, count + 1))
        return cls(
            width, height, str(values.dtype), bands, ("",) * count, None, (1.0,) * count,
            (0.0,) * count, "", None,
        )  # fmt: skip

    @property
    def kind(self) -> str:
        """Number of bands and their type in words: ``4 bands x uint16``."""
        count = len(self.bands)
        return f"{count} band{'s' if count > 1 else ''} x {self.dtype}"

    def describe(self) -> str:
        """Return the bands in words: ``4 bands x uint16 (1 blue, 2 green, 3 red, 4 nir)``."""
        named = [f"{b} {name}".strip() for b, name in zip(self.bands, self.names)]
        words = f"{self.kind} ({', '.join(named)})" if any(self.names) else self.kind
        return words if self.nodata is None else f"{words}, nodata {self.nodata:g}"


class Raster(NamedTuple):
    """Pixels of a raster.

    Attributes:
        values: Bands×H×W, in the file's own type, or float32 where the file scales its values.
        valid: H×W, False where any of the bands has no data.
    """

    values: np.ndarray
    valid: np.ndarray


@contextlib.contextmanager
def opened(source: str | bytes) -> Iterator[Any]:
    """Open a raster for a while.

    Args:
        source: Path of a local file, or the bytes of a file.

    Raises:
        UserError: rasterio is not installed.
        RasterError: The file is damaged, or of no format in :data:`STARTS`.
    """
    rasterio = import_rasterio()
    with rasterio.Env(**OPTIONS), _reasons(source), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files without georeference
        if isinstance(source, bytes):
            driver = _driver(io.BytesIO(source))
            with (
                rasterio.MemoryFile(source) as memory,
                memory.open(driver=driver) as dataset,
                _errors_end_with(dataset),
            ):
                yield dataset
        else:
            with _errors_end_with(dataset := _handles.get(source)):
                yield dataset


def describe(dataset: Any) -> RasterInfo:
    """Return the facts in the header of an opened raster.

    Raises:
        RasterError: The bands have several types, or complex numbers.
    """
    from rasterio.enums import ColorInterp

    colours = dict(zip(dataset.indexes, dataset.colorinterp))
    bands = tuple(b for b in dataset.indexes if colours[b] != ColorInterp.alpha)
    if not bands and dataset.subdatasets:
        parts = [part.rpartition(":")[2] for part in dataset.subdatasets]
        raise RasterError(
            f"{len(parts)} images in one file ({listed(parts)}). Store each, or a stack of them, "
            "as a file: gdal_translate and gdal_merge.py -separate"
        )
    if any(colours[b] == ColorInterp.palette for b in bands):
        raise RasterError(
            "a palette of colours, whose numbers are no grey levels. Expand it: gdal_translate "
            "-expand rgb"
        )
    types = {dataset.dtypes[b - 1] for b in bands}
    if len(types) != 1 or not np.issubdtype(np.dtype(dtype := types.pop()), np.number):
        raise RasterError(f"{len(bands)} bands of several types: {', '.join(dataset.dtypes)}")
    if np.issubdtype(np.dtype(dtype), np.complexfloating):
        count = f"{len(bands)} band{'s' if len(bands) > 1 else ''}"
        raise RasterError(
            f"{count} x {dtype}: complex numbers are no picture. Store their magnitude, for SAR "
            "in dB"
        )
    plain = (ColorInterp.undefined, ColorInterp.gray, ColorInterp.palette)
    names = tuple(
        dataset.descriptions[b - 1] or ("" if colours[b] in plain else colours[b].name)
        for b in bands
    )
    return RasterInfo(
        width=dataset.width,
        height=dataset.height,
        dtype=dtype,
        bands=bands,
        names=names,
        nodata=dataset.nodata,
        scales=tuple(dataset.scales[b - 1] for b in bands),
        offsets=tuple(dataset.offsets[b - 1] for b in bands),
        crs=dataset.crs.to_string() if dataset.crs else "",
        pixel_size=_pixel_size(dataset),
        transparency=tuple(b for b in dataset.indexes if colours[b] == ColorInterp.alpha),
    )


def read(
    dataset: Any,
    bands: tuple[int, ...],
    window: tuple[int, int, int, int] | None = None,
    size: tuple[int, int] | None = None,
    smooth: bool = True,
) -> Raster:
    """Read some bands of an opened raster, and where they have data.

    Args:
        dataset: What :func:`opened` gives, which also turns errors into :class:`RasterError`.
        bands: Numbers of the bands, from 1; a number may occur more than once.
        window: Top, left, height and width in pixels; the whole raster by default.
        size: Height and width of the result. GDAL reads an overview where the file has one that
            is fine enough; the window's own size by default.
        smooth: Whether pixels are averaged where the result is smaller than the window; otherwise
            single pixels are taken, which keeps the spread of values.

    Raises:
        RasterError: The pixels are damaged.
    """
    from rasterio.enums import ColorInterp, MaskFlags, Resampling

    area = None if window is None else _as_window(window)
    wanted = sorted(set(bands))
    order = [wanted.index(band) for band in bands]
    shape = None if size is None else (len(wanted), *size)
    resampling = Resampling.average if smooth else Resampling.nearest
    values = dataset.read(wanted, window=area, out_shape=shape, resampling=resampling)
    valid = np.ones(values.shape[1:], bool)
    flags = {flag for band in wanted for flag in dataset.mask_flag_enums[band - 1]}
    if MaskFlags.per_dataset in flags:  # an alpha or mask band, unless it is read as an image
        colours = dict(zip(dataset.indexes, dataset.colorinterp))
        if all(colours[band] != ColorInterp.alpha for band in wanted):
            valid = dataset.read_masks(wanted[0], window=area, out_shape=shape and shape[1:]) != 0
    lacking = _lacking(values, [dataset.nodatavals[number - 1] for number in wanted])
    valid &= ~lacking
    if np.issubdtype(values.dtype, np.floating):
        valid &= np.isfinite(values).all(axis=0)
    scales = np.array([dataset.scales[b - 1] for b in wanted], np.float32)
    offsets = np.array([dataset.offsets[b - 1] for b in wanted], np.float32)
    if (scales != 1).any() or (offsets != 0).any():
        values = values.astype(np.float32) * scales[:, None, None] + offsets[:, None, None]
    return Raster(values[order], valid)


def _lacking(values: np.ndarray, nodata: list[float | None]) -> np.ndarray:
    """Return where bands have the value that stands for no data.

    0 and the largest value of an unsigned type are ordinary values as well, such as the red of
    water: all bands have to have them. Any other value is unambiguous.
    """
    unsigned = values.dtype.kind == "u"
    ordinary = (0, np.iinfo(values.dtype).max) if unsigned else (0,)
    found = [
        np.zeros(band.shape, bool) if value is None or np.isnan(value) else band == value
        for band, value in zip(values, nodata)
    ]
    together = all(value in ordinary for value in nodata if value is not None)
    return np.all(found, axis=0) if together else np.any(found, axis=0)


def georeference(dataset: Any, window: tuple[int, int, int, int]) -> dict[str, Any]:
    """Return where a window of an opened raster lies, in plain Python.

    Args:
        dataset: What :func:`opened` gives.
        window: Top, left, height and width in pixels.

    Returns:
        ``crs`` as text (empty where there is none), ``transform``, the six numbers a to f of x =
        a·column + b·row + c and y = d·column + e·row + f, and ``bounds``: left, bottom, right, top.
    """
    area = _as_window(window)
    return dict(
        crs=dataset.crs.to_string() if dataset.crs else "",
        transform=list(dataset.window_transform(area))[:6],
        bounds=list(dataset.window_bounds(area)),
    )


def copy_window(
    dataset: Any, window: tuple[int, int, int, int], path: str, nodata: float | None = None
) -> None:
    """Write a window as a separate GeoTIFF: values, bands, names, mask and georeference.

    Args:
        dataset: What :func:`opened` gives.
        window: Top, left, height and width in pixels.
        path: File to write.
        nodata: The value that stands for no data, where the raster declares none.

    Raises:
        RasterError: The pixels are damaged, or the file cannot be written.
    """
    rasterio = import_rasterio()
    from rasterio.enums import MaskFlags

    area = _as_window(window)
    dtypes = set(dataset.dtypes)
    floating = any(np.issubdtype(np.dtype(dtype), np.floating) for dtype in dtypes)
    profile = dict(
        driver="GTiff", count=dataset.count, dtype=dataset.dtypes[0], height=window[2],
        width=window[3], compress="deflate", predictor=3 if floating else 2,
        nodata=nodata if dataset.nodata is None else dataset.nodata,
    )  # fmt: skip
    if dataset.crs or not dataset.transform.is_identity:
        profile |= dict(crs=dataset.crs, transform=dataset.window_transform(area))
    flags = {flag for band in dataset.mask_flag_enums for flag in band}
    own_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    with (
        rasterio.Env(**OPTIONS, GDAL_TIFF_INTERNAL_MASK=True),
        _reasons(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of files without georeference
        with rasterio.open(path, "w", **profile) as copy:
            copy.colorinterp = dataset.colorinterp
            copy.write(dataset.read(window=area))
            copy.descriptions = dataset.descriptions
            copy.scales, copy.offsets = dataset.scales, dataset.offsets
            if own_mask:
                copy.write_mask(dataset.read_masks(1, window=area))


def _as_window(window: tuple[int, int, int, int]) -> Any:
    import_rasterio()
    from rasterio.windows import Window

    top, left, height, width = window
    return Window(left, top, width, height)


def import_rasterio() -> Any:
    """Return the module ``rasterio``.

    Raises:
        UserError: It is not installed.
    """
    try:
        import rasterio
    except ImportError:
        raise UserError(
            "Rasters (GeoTIFF, JPEG2000, more than 8 bits or 3 bands) are read by a package that "
            "is not installed: pip install rasterio"
        ) from None
    return rasterio


def _driver(file: BinaryIO) -> str:
    """Return GDAL's name of a file's format."""
    start = file.read(16)
    for driver, starts in STARTS.items():
        if start.startswith(starts):
            # GDAL reads zeros where a netCDF ends too early; of the other formats it says so.
            if driver == "netCDF" and (words := cut_off(file)):
                raise RasterError(words)
            return driver
    raise RasterError("not a raster of a known format")


def _pixel_size(dataset: Any) -> float | None:
    crs = dataset.crs
    if not crs or dataset.transform.is_identity:
        return None
    across, down = dataset.res
    if crs.is_projected:
        return float((across * down) ** 0.5 * crs.linear_units_factor[1])
    if crs.is_geographic:
        bounds = dataset.bounds
        north = np.deg2rad((bounds.top + bounds.bottom) / 2)
        degree = 111_320.0  # metres at the equator
        return float((across * np.cos(north) * down) ** 0.5 * degree)
    return None


@contextlib.contextmanager
def _reasons(source: str | bytes = b"") -> Iterator[None]:
    """Turn the errors of rasterio and GDAL into :class:`RasterError`.

    Args:
        source: Path of the raster or its bytes, to see whether it is cut off.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("rasterio."):  # its public and its inner errors
            raise
        with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as file:
            words = cut_off(file)
        cause = error.__cause__ or error
        words = words or _IN_MEMORY.sub("", " ".join(str(cause).split()))
        raise RasterError(words) from error


@contextlib.contextmanager
def _errors_end_with(dataset: Any) -> Iterator[None]:
    """Keep an error of one file from being reported again by the next call, as GDAL's list does."""
    try:
        yield
    except Exception:
        for _ in range(3):
            with contextlib.suppress(Exception):
                dataset.colorinterp  # noqa: B018
        raise


class _Handles(threading.local):
    """The rasters that a thread has open, the least recently used of which is closed first."""

    def __init__(self) -> None:
        self.opened: OrderedDict[str, Any] = OrderedDict()

    def get(self, path: str) -> Any:
        if path in self.opened:
            self.opened.move_to_end(path)
            return self.opened[path]
        with open(path, "rb") as file:
            driver = _driver(file)
        dataset = import_rasterio().open(path, driver=driver)
        self.opened[path] = dataset
        if len(self.opened) > MAX_OPEN:
            self.opened.popitem(last=False)[1].close()
        return dataset

    def forget(self) -> None:
        """Leave a forked child without its parent's files, whose positions the two would share."""
        self.opened = OrderedDict()


_handles = _Handles()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_handles.forget)
