"""What a raster scene holds, and where it holds data, without decoding it whole."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gersp_mm.images import rasters
from gersp_mm.images.pixels import is_nodata
from gersp_mm.images.rasters import Raster, RasterInfo
from gersp_mm.images.scaling import WHOLE_SIDE

SAMPLES = 4  # along each side of a cell, where the whole scene can be looked at
SPOT = 16  # pixels a side of what is looked at in a cell otherwise
# One value that fills this share of a scene's border, and this share of the scene, is suspected to
# stand for no data.
BORDER_SHARE, FILLED_SHARE = 0.2, 0.01


@dataclass(frozen=True)
class Scene:
    """Facts about one raster scene.

    Attributes:
        path: Its file.
        info: What its header says.
        bits: Bits that the largest of the values looked at needs; 0 for floating point.
        nodata: The value that stands for no data in all bands, declared or suspected; None if
            there is none.
        suspected: Whether ``nodata`` is not declared in the file.
        valid_share: Share of the cells' area with data, in [0, 1].
        shape: Rows and columns of cells.
        cells: Row and column of the cells with data, N×2 int32.
        fingerprint: Hash of the file's size and of its first and last 64 KiB.
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

    @property
    def cell_size(self) -> tuple[float, float]:
        """Height and width of a cell in pixels."""
        return self.info.height / self.shape[0], self.info.width / self.shape[1]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts in plain Python, with the number of windows in place of the cells."""
        content = {**asdict(self), "info": self.info._asdict(), "windows": len(self.cells)}
        del content["cells"]
        return content


def look_at(path: str, side: int, nodata: float | str | None = "auto") -> Scene:
    """Look at one scene.

    Args:
        path: A local file.
        side: Largest side of a cell in pixels.
        nodata: A value that stands for no data beside what the file declares; ``'auto'`` suspects
            one where a constant border is large, None takes the file's word.

    Raises:
        RasterError: It cannot be read.
        UserError: rasterio is not installed.
    """
    with rasters.opened(path) as dataset:
        info = rasters.describe(dataset)
        shape = max(1, -(-info.height // side)), max(1, -(-info.width // side))
        sampled = _cells(dataset, info, shape)
        declared = info.nodata if nodata == "auto" or nodata is None else None
        suspected = None
        if nodata == "auto":
            suspected = _suspect(sampled) if bool(sampled.valid.all()) else None
            nodata = suspected if suspected is not None else declared
    valid = sampled.valid & ~is_nodata(sampled.values, suspected)
    share = valid.mean(axis=(1, 3))  # of each cell
    has_data = share > 0
    if sampled.valid.shape[1] != SAMPLES:  # a spot in the middle says little about the rest
        has_data = _dilated(has_data)
    whole = np.issubdtype(np.dtype(info.dtype), np.integer)
    largest = int(sampled.values[:, valid].max()) if whole and valid.any() else 0
    return Scene(
        path=path,
        info=info,
        bits=largest.bit_length(),
        nodata=declared if nodata is None else float(nodata),
        suspected=suspected is not None,
        valid_share=float(share.mean()),
        shape=shape,
        cells=np.argwhere(has_data).astype(np.int32),
        fingerprint=fingerprint(path),
    )


def fingerprint(path: str) -> str:
    """Return a hash that tells whether a large file was replaced, without reading all of it."""
    size = os.path.getsize(path)
    hashed = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        hashed.update(file.read(2**16))
        file.seek(max(0, size - 2**16))
        hashed.update(file.read(2**16))
    return hashed.hexdigest()[:16]


def _cells(dataset: Any, info: RasterInfo, shape: tuple[int, int]) -> Raster:
    """Return values (bands×rows×a×columns×a) and validity (rows×a×columns×a) of samples of cells.

    With an overview, or in a small file, a is :data:`SAMPLES`; otherwise it is :data:`SPOT`.
    """
    rows, columns = shape
    if max(info.height, info.width) <= WHOLE_SIDE or dataset.overviews(info.bands[0]):
        each, size = SAMPLES, (rows * SAMPLES, columns * SAMPLES)
        values, valid = rasters.read(dataset, info.bands, size=size, smooth=False)
    else:
        each = SPOT
        spots = [
            [_spot(dataset, info, (row + 0.5) / rows, (column + 0.5) / columns)
             for column in range(columns)]
            for row in range(rows)
        ]  # fmt: skip
        values = np.block([[spot.values for spot in row] for row in spots])
        valid = np.block([[spot.valid for spot in row] for row in spots])
    return Raster(
        values.reshape(len(info.bands), rows, each, columns, each),
        valid.reshape(rows, each, columns, each),
    )


def _spot(dataset: Any, info: RasterInfo, down: float, across: float) -> Raster:
    """Read the pixels around a point, given as shares of the scene's height and width.

    A scene that is narrower than a spot is stretched to it.
    """
    height, width = min(SPOT, info.height), min(SPOT, info.width)
    top = max(0, min(int(down * info.height) - height // 2, info.height - height))
    left = max(0, min(int(across * info.width) - width // 2, info.width - width))
    window = top, left, height, width
    return rasters.read(dataset, info.bands, window, (SPOT, SPOT), smooth=False)


def _suspect(sampled: Raster) -> float | None:
    """Return the value that seems to stand for no data: equal in all bands, on a large border."""
    bands = len(sampled.values)
    rows, a, columns, _ = sampled.valid.shape
    picture = sampled.values.reshape(bands, rows * a, columns * a)
    border = np.concatenate(
        [picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], axis=1
    )
    constant = border[0][(border == border[0]).all(axis=0)]
    if not constant.size:
        return None
    found, counts = np.unique(constant, return_counts=True)
    value = found[counts.argmax()]
    if counts.max() < BORDER_SHARE * border.shape[1]:
        return None
    return float(value) if is_nodata(picture, value).mean() >= FILLED_SHARE else None


def _dilated(mask: np.ndarray) -> np.ndarray:
    """Return a mask with the eight neighbours of what it holds."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.any(
        [padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)], axis=0
    )
