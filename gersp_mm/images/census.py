"""Find the content of a raster scene and where it has data, without decoding all of it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from gersp_mm.images import rasters
from gersp_mm.images.bands import cut_off
from gersp_mm.images.pixels import is_nodata, suspect_nodata
from gersp_mm.images.rasters import Raster, RasterInfo
from gersp_mm.images.scaling import WHOLE_SIDE, read_picture

SAMPLES = 4  # Samples along each side of a cell, where the whole scene can be read.
SPOT = 16  # Side in pixels of the spot that is read in each cell otherwise.


@dataclass(frozen=True)
class Scene:
    """Facts about one raster scene.

    Attributes:
        path: Its file.
        info: The facts in its header.
        bits: Number of bits of the largest sampled value; 0 for floating point.
        nodata: The value that stands for no data in all bands, declared or suspected; None if
            there is none.
        suspected: Whether ``nodata`` is not declared in the file.
        valid_share: Share of the cells' area with data, in [0, 1].
        shape: Rows and columns of cells.
        cells: Row and column of the cells with data, N×2 int32.
        fingerprint: Hash of the file's size and of its first and last 64 KiB.
        values: Pixels with data of the bands that are used, from all over the scene, bands×N.
    """

    path: str
    info: RasterInfo
    bits: int
    nodata: float | None
    suspected: bool
    valid_share: float
    shape: tuple[int, int]
    cells: np.ndarray
    fingerprint: str
    values: np.ndarray

    @property
    def cell_size(self) -> tuple[float, float]:
        """Height and width of a cell in pixels."""
        return self.info.height / self.shape[0], self.info.width / self.shape[1]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts in plain Python, with the number of windows in place of the cells."""
        content: dict[str, Any] = {name.name: getattr(self, name.name) for name in fields(self)}
        del content["values"]
        content |= dict(cells=len(self.cells), info=self.info._asdict())
        content["windows"] = content.pop("cells")
        for part in (content, content["info"]):  # JSON has no NaN
            if part["nodata"] is not None and not math.isfinite(part["nodata"]):
                part["nodata"] = str(part["nodata"])
        return content


def look_at(
    path: str,
    side: int,
    nodata: float | str | None = "auto",
    choose: Callable[[RasterInfo], tuple[int, ...]] | None = None,
) -> Scene:
    """Look at one scene.

    Args:
        path: A local file.
        side: Largest side of a cell in pixels.
        nodata: A value that marks missing data, besides the file's own nodata value; ``'auto'``
            suspects one where a constant border is large, None takes the file's word.
        choose: Gives the bands that are used; all by default.

    Raises:
        RasterError: It cannot be read.
        BandsError: ``choose`` refuses its bands.
        UserError: rasterio is not installed.
    """
    with rasters.opened(path) as dataset:
        info = rasters.describe(dataset)
        bands = info.bands if choose is None else choose(info)
        shape = max(1, -(-info.height // side)), max(1, -(-info.width // side))
        sampled = _cells(dataset, info, bands, shape)
        picture = read_picture(dataset, info, bands)  # finer, where cells are few
        end = max(0, info.height - SPOT), max(0, info.width - SPOT)
        rasters.read(dataset, bands, (*end, min(SPOT, info.height), min(SPOT, info.width)))
        with open(path, "rb") as file:
            if cut_off(file):  # or its header is odd: reading it tells
                for _, block in dataset.block_windows(bands[0]):
                    area = block.row_off, block.col_off, block.height, block.width
                    rasters.read(dataset, bands, area)
    suspected = None
    if nodata == "auto" and sampled.valid.all():
        rows, each, columns, _ = sampled.valid.shape
        suspected = suspect_nodata(sampled.values.reshape(len(bands), rows * each, columns * each))
    given = nodata if isinstance(nodata, (int, float)) else None
    own = suspected if suspected is not None else given
    valid = sampled.valid & ~is_nodata(sampled.values, own)
    share = valid.mean(axis=(1, 3))  # of each cell
    has_data = share > 0
    if sampled.valid.shape[1] != SAMPLES:  # A spot in the middle says little about the rest.
        around = F.max_pool2d(torch.from_numpy(has_data).float()[None], 3, stride=1, padding=1)
        has_data = around[0].numpy() > 0
    values = sampled.values[:, valid]
    if picture is not None:
        finer = picture.values[:, picture.valid & ~is_nodata(picture.values, own)]
        values = finer if finer.shape[1] > values.shape[1] else values
    return Scene(
        path=path,
        info=info,
        bits=_bits(sampled.values[:, valid], info),
        nodata=info.nodata if own is None else float(own),
        suspected=suspected is not None,
        valid_share=float(share.mean()),
        shape=shape,
        cells=np.argwhere(has_data).astype(np.int32),
        fingerprint=fingerprint(path),
        values=values,
    )


def _bits(values: np.ndarray, info: RasterInfo) -> int:
    """Return the number of bits of the largest stored value; 0 for floating point."""
    if not np.issubdtype(np.dtype(info.dtype), np.integer) or not values.size:
        return 0
    return int(round((float(values.max()) - info.offsets[0]) / info.scales[0])).bit_length()


def fingerprint(path: str) -> str:
    """Return a hash that tells whether a large file was replaced, without reading all of it."""
    size = os.path.getsize(path)
    hashed = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        hashed.update(file.read(2**16))
        file.seek(max(0, size - 2**16))
        hashed.update(file.read(2**16))
    return hashed.hexdigest()[:16]


def _cells(
    dataset: Any, info: RasterInfo, bands: tuple[int, ...], shape: tuple[int, int]
) -> Raster:
    """Return values (bands×rows×a×columns×a) and validity (rows×a×columns×a) of samples of cells.

    With an overview, or in a small file, a is :data:`SAMPLES`; otherwise it is :data:`SPOT`.
    """
    rows, columns = shape
    if max(info.height, info.width) <= WHOLE_SIDE or dataset.overviews(bands[0]):
        each, size = SAMPLES, (rows * SAMPLES, columns * SAMPLES)
        values, valid = rasters.read(dataset, bands, size=size, smooth=False)
    else:
        each = SPOT
        spots = [
            [_spot(dataset, info, bands, (row + 0.5) / rows, (column + 0.5) / columns)
             for column in range(columns)]
            for row in range(rows)
        ]  # fmt: skip
        values = np.block([[spot.values for spot in row] for row in spots])
        valid = np.block([[spot.valid for spot in row] for row in spots])
    return Raster(
        values.reshape(len(bands), rows, each, columns, each),
        valid.reshape(rows, each, columns, each),
    )


def _spot(
    dataset: Any, info: RasterInfo, bands: tuple[int, ...], down: float, across: float
) -> Raster:
    """Read the pixels around a point, given as shares of the scene's height and width.

    A scene that is narrower than a spot is stretched to it.
    """
    height, width = min(SPOT, info.height), min(SPOT, info.width)
    top = max(0, min(int(down * info.height) - height // 2, info.height - height))
    left = max(0, min(int(across * info.width) - width // 2, info.width - width))
    window = top, left, height, width
    return rasters.read(dataset, bands, window, (SPOT, SPOT), smooth=False)
