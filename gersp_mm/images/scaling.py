"""Pixel scales of whole sources, and the conversion of rasters to 8-bit RGB."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mmengine.logging import print_log

from gersp_mm.images import rasters
from gersp_mm.images.bands import is_raster
from gersp_mm.images.packed import is_local_file, open_file, read_file
from gersp_mm.images.pixels import BandsError, PixelScale, suspect_nodata
from gersp_mm.images.rasters import Raster, RasterInfo
from gersp_mm.utils.console import progress_bar
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import escape_name

SAMPLED_FILES = 256  # files of a source, spread evenly over its sorted paths
SAMPLED_SIDE = 128  # pixels per side that are sampled in each file, spread evenly
# A larger raster without overviews is not decoded completely; spots of it are read instead.
WHOLE_SIDE = 4096
SPOTS, SPOT_SIDE = 8, 16  # number along each side, and pixels per side
# Pixels sampled in all scenes together, and at least and at most in each scene.
ALL_PIXELS, LEAST_PIXELS, MOST_PIXELS = 2**22, 2**14, 2**18


Sampler = Callable[[int], "tuple[str, np.ndarray] | None"]


def find_scale(
    name: str,
    count: int,
    path_of: Callable[[int], str],
    scale: PixelScale,
    nodata: float | str | None = "auto",
) -> PixelScale:
    """Find the limits of a pixel scale on a sample of a source.

    The same paths give the same sample: :data:`SAMPLED_FILES` files, spread evenly, with a grid of
    :data:`SAMPLED_SIDE` pixels per side from each. Unreadable files are left out.

    Args:
        name: Name of the source, for messages.
        count: Number of images of the source.
        path_of: Function that returns the path of the image with a number.
        scale: The requested scale.
        nodata: A value that stands for no data in all rasters; ``'auto'`` takes the lowest value
            of a kind of raster if it fills a large border of files that declare no value, and
            warns; None uses only declared values.

    Returns:
        ``scale`` with the limits and fill values of every kind of raster in the sample; the same
        object if the sample holds no raster.

    Raises:
        UserError: More rasters than not need a choice of bands, or rasterio is not installed.
    """
    suspected: dict[str, list[float | None]] = {}

    def sampler(index: int) -> tuple[str, np.ndarray] | None:
        found = sample_file(path_of(index), scale)
        if found is None:
            return None
        kind, values, value = found
        suspected.setdefault(kind, []).append(value)
        return kind, values

    samples = take_samples(name, spread(count), path_of, sampler)
    if not samples:
        return scale
    given: dict[str, float] = {}
    if isinstance(nodata, (int, float)):
        given = dict.fromkeys(samples, float(nodata))
    elif nodata is not None:
        for kind, values in suspected.items():
            lowest = min((float(v.min()) for v in samples[kind] if v.size), default=None)
            if lowest is not None and (holding := values.count(lowest)):
                given[kind] = lowest
                print_log(
                    f"{holding} of {len(values)} sampled rasters of {name} ({kind}) have a "
                    f"large border of {lowest:g}, although they do not declare it: the value is "
                    "treated as no data. Set nodata=None to use these pixels",
                    "current",
                    logging.WARNING,
                )
    return replace(scale, nodata=given).find(samples)


def take_samples(
    name: str, indices: Sequence[int], path_of: Callable[[int], str], sampler: Sampler
) -> dict[str, list[np.ndarray]]:
    """Return samples of the rasters of a source.

    Args:
        name: Name of the source, for messages.
        indices: Numbers of the images of the sample, see :func:`spread`.
        path_of: Function that returns the path of the image with a number.
        sampler: Function that returns the kind and some valid pixels of the chosen bands, 3×N, of
            the image with a number; None for a photograph. Unreadable files are left out.

    Returns:
        The samples of every kind of raster.

    Raises:
        UserError: More rasters than not need a choice of bands, or rasterio is not installed.
    """
    samples: dict[str, list[np.ndarray]] = {}
    refused: dict[str, list[str]] = {}  # paths by reason
    with progress_bar(f"pixel values of {name}", "image", len(indices)) as bar:
        for index in indices:
            try:
                if found := sampler(index):
                    kind, values = found
                    samples.setdefault(kind, []).append(values)
            except BandsError as error:
                refused.setdefault(str(error), []).append(path_of(index))
            except OSError:  # replaced and counted during the training
                pass
            bar.advance()
    if refused:
        total = sum(map(len, refused.values()))
        reason, paths = max(refused.items(), key=lambda item: len(item[1]))
        message = (
            f"{total} of {len(indices)} sampled images of {name} cannot be used, such "
            f"as {escape_name(paths[0])}: {reason}"
        )
        if total > sum(map(len, samples.values())):
            raise UserError(message)
        print_log(message, "current", logging.WARNING)
    return samples


def spread(count: int, most: int = SAMPLED_FILES) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``, spread evenly."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()


def thinned(values: np.ndarray, count: int) -> np.ndarray:
    """Return the pixels, bands×N, that one of ``count`` scenes contributes to a pixel scale."""
    share = ALL_PIXELS // min(count, SAMPLED_FILES)
    return values[:, spread(values.shape[1], max(LEAST_PIXELS, min(MOST_PIXELS, share)))]


def sample_file(path: str, scale: PixelScale) -> tuple[str, np.ndarray, float | None] | None:
    """Return the kind of a raster, valid pixels of its chosen bands, 3×N, and a no-data value.

    Args:
        path: A file of any storage.
        scale: The scale, which selects the bands.

    Returns:
        None for a photograph. The last entry is the value that seems to stand for no data, see
        :func:`gersp_mm.images.pixels.suspect_nodata`; None if there is no such value or if the file
        declares it.

    Raises:
        OSError: The file cannot be read.
        BandsError: Its bands do not fit the choice.
        UserError: rasterio is not installed.
    """
    with open_file(path) as file:
        if not is_raster(file):
            return None
    with rasters.opened(raster_source(path)) as dataset:
        info = rasters.describe(dataset)
        bands = scale.choose(info)
        picture = read_picture(dataset, info, bands)
        found = sample(dataset, info, bands) if picture is None else picture
    declared = info.nodata is not None or not found.valid.all()
    value = None if picture is None or declared else suspect_nodata(picture.values)
    return info.kind, found.values[:, found.valid], value


def raster_to_rgb(
    content: bytes, scale: PixelScale | None, check_size: Callable[[int, int, int], None]
) -> np.ndarray:
    """Read a whole raster as 8-bit RGB.

    Args:
        content: The bytes of a file.
        scale: Bands and limits; without limits, or None, the image is stretched by its own values.
        check_size: Function of width and height in pixels and length of the file in bytes that
            refuses images which are too large.

    Returns:
        3×H×W uint8.

    Raises:
        RasterError: The raster cannot be read.
        BandsError: Its bands do not fit the choice of bands, or no limits are known for its kind.
        UserError: rasterio is not installed.
    """
    with rasters.opened(content) as dataset:
        info = rasters.describe(dataset)
        check_size(info.width, info.height, len(content))
        raster = rasters.read(dataset, (scale or PixelScale()).choose(info))
    scale = scale or PixelScale()
    if not scale.limits:  # no limits of other images are known
        if info.nodata is None and raster.valid.all():
            value = suspect_nodata(raster.values)
            if value is not None and value == raster.values.min():
                scale = replace(scale, nodata={info.kind: value})
        scale = scale.find({info.kind: [raster.values[:, raster.valid]]})
    return scale.to_rgb(raster, info.kind)


def check_raster(content: bytes) -> RasterInfo:
    """Decode a raster to check that it can be read; above :data:`WHOLE_SIDE` only spots of it.

    Returns:
        The facts in its header.

    Raises:
        RasterError: The raster cannot be read.
    """
    with rasters.opened(content) as dataset:
        info = rasters.describe(dataset)
        if max(info.height, info.width) > WHOLE_SIDE:
            sample(dataset, info, info.bands)
        else:
            rasters.read(dataset, info.bands)
    return info


def raster_source(path: str) -> str | bytes:
    """Return the argument of :func:`gersp_mm.images.rasters.opened` for a file of any storage."""
    return path if is_local_file(path) else read_file(path)


def sample(dataset: Any, info: RasterInfo, bands: tuple[int, ...]) -> Raster:
    """Return single pixels of an opened raster, spread evenly over it.

    Args:
        dataset: A raster opened by :func:`gersp_mm.images.rasters.opened`.
        info: The facts in its header.
        bands: Numbers of the bands, from 1.

    Returns:
        ``values``, bands×N, and ``valid``, N; N is at most the square of :data:`SAMPLED_SIDE`.

    Raises:
        RasterError: The pixels are damaged.
    """
    if (picture := read_picture(dataset, info, bands)) is not None:
        parts = [picture]
    else:
        height, width = min(SPOT_SIDE, info.height), min(SPOT_SIDE, info.width)
        corners = [(top, left) for top in _spots(info.height) for left in _spots(info.width)]
        parts = [rasters.read(dataset, bands, (*corner, height, width)) for corner in corners]
    return Raster(
        np.concatenate([part.values.reshape(len(bands), -1) for part in parts], axis=1),
        np.concatenate([part.valid.ravel() for part in parts]),
    )


def read_picture(dataset: Any, info: RasterInfo, bands: tuple[int, ...]) -> Raster | None:
    """Return a grid of at most :data:`SAMPLED_SIDE` pixels per side over an opened raster.

    Returns:
        Bands×H×W values and their validity; None for a large raster without overviews, which
        would have to be decoded completely.
    """
    if max(info.height, info.width) > WHOLE_SIDE and not dataset.overviews(bands[0]):
        return None
    size = min(info.height, SAMPLED_SIDE), min(info.width, SAMPLED_SIDE)
    return rasters.read(dataset, bands, size=size, smooth=False)


def _spots(side: int) -> list[int]:
    """Return the starts of the spots along one side of a large raster."""
    spots = max(1, min(SPOTS, side // SPOT_SIDE))
    return np.linspace(0, max(0, side - SPOT_SIDE), spots).round().astype(int).tolist()
