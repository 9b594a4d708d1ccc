"""Number, size and kind of the images to pre-train on."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from gersp_mm.datasets.scenes import RASTER_EXTENSIONS
from gersp_mm.images import rasters
from gersp_mm.images.bands import is_raster
from gersp_mm.images.decode import unlimited_image_size
from gersp_mm.images.listing import ImageList, find_images
from gersp_mm.images.packed import open_file
from gersp_mm.images.scaling import spread
from gersp_mm.utils.errors import UserError

SAMPLED = 64  # number of files whose size is read
SCENE_SIDE = 1024  # pixels; if half of the images are longer, windows are read


class Look(NamedTuple):
    """Number and size of the images, and the source that reads them.

    Attributes:
        source: Config of the source of the images; ``files`` holds paths relative to ``data_root``
            if files were named individually.
        number: Number of files.
        side: Median of the shorter sides in pixels.
        longer: Median of the longer sides in pixels.
        scenes: Whether windows of the images are read.
        rasters: Number of rasters among the sampled files.
    """

    source: dict[str, Any]
    number: int
    side: int
    longer: int
    scenes: bool
    rasters: int


def look_at(images: Sequence[str | os.PathLike], window: str | int | None = None) -> Look:
    """Return number and size of the images in a folder, a list or some files.

    Args:
        images: One folder, one list of images (``.txt``), or files.
        window: Side of the windows that are read from every image, in pixels or metres
            (``'384 m'``); by default windows are read if most images are large.

    Raises:
        UserError: The folder does not exist or holds no image.
    """
    given = [Path(path) for path in images]
    missing = [path for path in given if not path.exists()]
    if missing:
        raise UserError(f"--images {missing[0]}: there is no such file or folder.")
    first = given[0]
    if len(given) > 1 and (folders := [path for path in given if path.is_dir()]):
        raise UserError(f"--images {folders[0]}: give one folder alone, or files.")
    source: dict[str, Any] = dict(type="gersp_mm.MillionAID")
    if len(given) == 1 and first.is_dir():
        paths = [str(first / name) for name in find_images(str(first))]
        source["data_root"] = str(first.resolve())
    elif len(given) == 1 and first.suffix == ".txt":
        listed = ImageList.read(first, first.parent, labelled=False)
        paths = [str(first.parent / name) for name in listed.paths]
        source.update(data_root=str(first.parent.resolve()), ann_file=first.name)
    else:
        paths = sorted(map(str, given))
        folder = os.path.commonpath([path.resolve().parent for path in given])
        names = [os.path.relpath(Path(path).resolve(), folder) for path in paths]
        source.update(data_root=folder, files=names)
    if not paths:
        raise UserError(f"--images {first} holds no image.")
    sizes, raster_count = _sizes([paths[index] for index in spread(len(paths), SAMPLED)])
    if not sizes:
        raise UserError(
            f"--images {first}: none of {min(len(paths), SAMPLED)} sampled files can "
            f"be read. `gersp check {first}` says why."
        )
    longer = int(statistics.median(max(size) for size in sizes))
    as_raster = sum(path.lower().endswith(RASTER_EXTENSIONS) for path in paths) * 2 > len(paths)
    scenes = window is not None or (longer > SCENE_SIDE and as_raster)
    side = int(statistics.median(min(size) for size in sizes))
    if scenes:
        source["type"] = "gersp_mm.Scenes"
        if "ann_file" in source:
            source["files"] = source.pop("ann_file")
        source["window"] = window or 512
    return Look(source, len(paths), side, longer, scenes, raster_count)


def _sizes(paths: Sequence[str]) -> tuple[list[tuple[int, int]], int]:
    """Return the sizes of the files that can be read, and how many of these are rasters."""
    sizes, raster_count = [], 0
    for path in paths:
        try:
            with open_file(path) as file:
                raster = is_raster(file)
            if raster:
                with rasters.opened(path) as dataset:
                    sizes.append((dataset.width, dataset.height))
                    raster_count += 1
            else:
                with unlimited_image_size(), Image.open(path) as image:
                    sizes.append(image.size)
        except OSError:  # Training replaces and counts unreadable images.
            continue
    return sizes, raster_count
