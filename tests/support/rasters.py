"""Small rasters of every kind, written with rasterio."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np


def surface(bands: int, seed: int = 0, size: tuple[int, int] = (70, 90)) -> np.ndarray:
    """Smooth bands×H×W values of which each band fills the range from 0 to 1."""
    steps = np.random.default_rng(seed).standard_normal((bands, *size))
    values = steps.cumsum(1).cumsum(2)
    low, high = (f(values, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return (values - low) / (high - low)


def write(path: Path, values: np.ndarray, metres: float | None = None, **profile: Any) -> str:
    """Write a raster, with a ground scale where metres a pixel are given; return its path."""
    import rasterio
    from rasterio.transform import from_origin

    if metres is not None:
        profile.update(crs="EPSG:32633", transform=from_origin(4e5, 5e6, metres, metres))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files without georeference
        with rasterio.open(
            path, "w", driver=profile.pop("driver", "GTiff"), count=len(values), dtype=values.dtype,
            height=values.shape[1], width=values.shape[2], **profile,
        ) as file:  # fmt: skip
            file.write(values)
    return str(path)
