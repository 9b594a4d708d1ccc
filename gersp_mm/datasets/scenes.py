"""Windows of large rasters as the images of a source, spread evenly over all valid pixels."""

from __future__ import annotations

import glob
import math
import os
import os.path as osp
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from torch.utils.data import Dataset

from gersp_mm.images import rasters
from gersp_mm.images.census import Scene, look_at
from gersp_mm.images.decode import BadImageError, EmptyWindowError
from gersp_mm.images.listing import ImageList, find_images
from gersp_mm.images.pixels import (
    PERCENTILE,
    BandsError,
    PixelScale,
    Scale,
    check_nodata,
    is_nodata,
)
from gersp_mm.images.rasters import Raster, RasterError, RasterInfo
from gersp_mm.images.scaling import spread, thinned
from gersp_mm.registry import DATASETS
from gersp_mm.utils.console import progress_bar
from gersp_mm.utils.errors import UserError, check_number, counted, listed
from gersp_mm.utils.files import escape_name

RASTER_EXTENSIONS = (".tif", ".tiff", ".jp2", ".png", ".nc")
ATTEMPTS = 8  # most windows drawn for a cell until a window has enough data
CLEAN = 0.01  # A window with a smaller share of no data ends the search at once.
Window = tuple[int, int, int, int]  # top, left, height and width in pixels of the scene
_METRES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*m\s*")


@DATASETS.register_module()
class Scenes(Dataset):
    """Windows of raster scenes, as the remote-sensing source of a ``PairedDataset``.

    In a config::

        remote_sensing=dict(type='gersp_mm.Scenes', data_root='/my/scenes', window='384 m',
                            bands=(4, 3, 2))

    A census examines every scene first. Each scene is divided into cells of half the side of a
    window; one window belongs to each cell with data, and its centre is drawn within the cell from
    the global random state. With :class:`gersp_mm.PairedSampler`, a window depends only on (seed,
    epoch, index). Every valid pixel is in at least one window of a pass and in four on average,
    except at borders where no window has enough data.

    Args:
        data_root: Folder of the scenes, searched recursively.
        files: Scenes by their paths, a pattern such as ``'2024/*.tif'``, or the path of a list with
            one path per line; relative to ``data_root``.
        window: Side of a window in pixels (``512``) or in metres (``'384 m'``).
        jitter: Variation of the side, in the same unit: the side is drawn from ``window - jitter``
            to ``window + jitter``.
        read_size: Largest side in pixels at which a window is read. Longer windows are reduced to
            it while they are read, from an overview if the file has one.
        max_nodata: Largest share of a window without data, in [0, 1).
        nodata: A value that stands for no data if a file does not declare one; ``'auto'`` takes
            the value of a large constant border; None uses only the declared values.
        neighbour_key: Largest shift of the key view's window in each direction, in the unit of
            ``window``; 0 takes both views from one window.
        scale: See :class:`gersp_mm.images.pixels.PixelScale`.
        bands: See :class:`gersp_mm.images.pixels.PixelScale`.

    Raises:
        UserError: There is no scene, no scene can be used, an argument is out of its range, or
            rasterio is not installed.
    """

    labelled = False
    metainfo: dict[str, Any] = {}

    def __init__(
        self,
        data_root: str = "",
        files: str | Sequence[str] = "",
        window: int | str = 512,
        jitter: int | str = 0,
        read_size: int = 512,
        max_nodata: float = 0.1,
        nodata: float | str | None = "auto",
        neighbour_key: int | str = 0,
        scale: Scale = PERCENTILE,
        bands: Sequence[int | str] | int | str | None = None,
    ) -> None:
        check_number("Scenes: read_size", read_size, 16, whole=True, such_as=512)
        check_number("Scenes: max_nodata", max_nodata, 0, 0.99, such_as=0.1)
        self.in_metres = isinstance(window, str)
        self.window = _length("window", window, self.in_metres)
        self.jitter = _length("jitter", jitter, self.in_metres)
        self.neighbour_key = _length("neighbour_key", neighbour_key, self.in_metres)
        if not 0 <= self.jitter < self.window:
            raise UserError(f"Scenes: jitter={jitter!r} must be smaller than window={window!r}")
        check_nodata("Scenes", nodata)
        self.read_size = read_size
        self.max_nodata = max_nodata
        self.nodata = nodata
        self.data_root = data_root
        self.asked_scale = PixelScale(scale, bands)  # type: ignore[arg-type]
        self.pixel_scale = self.asked_scale
        self.bad: dict[str, str] = {}  # reasons of the scenes that cannot be used
        self.scenes = self._census(_find(data_root, files))
        counts = [len(scene.cells) for scene in self.scenes]
        self._ends = np.cumsum(counts)
        # A replacement is this number of windows further on, in another scene if there are several.
        steps = range(int(0.618 * len(self)) + 1, 2 * len(self) + 2)
        self.stride = next(step for step in steps if math.gcd(step, len(self)) == 1)

    def __len__(self) -> int:
        """Return the number of windows of one pass."""
        return int(self._ends[-1])

    def full_init(self) -> None:
        """Do nothing, because the scenes are listed at the start; the hosts call this method."""

    def census(self) -> list[dict[str, Any]]:
        """Return the facts about each scene, plain Python, in the order of their paths."""
        return [scene.as_dict() for scene in self.scenes]

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each scene by its path below ``data_root``."""
        root = self.data_root or os.curdir
        return {osp.relpath(scene.path, root): scene.fingerprint for scene in self.scenes}

    @property
    def file_count(self) -> int:
        """Number of scenes, including unusable scenes."""
        return len(self.scenes) + len(self.bad)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return ``dict(img_path=…, sample_idx=…, scene=…, cell=…)`` of one window."""
        number = range(len(self))[idx]
        scene = int(np.searchsorted(self._ends, number, side="right"))
        cells = self.scenes[scene].cells
        cell = cells[number - int(self._ends[scene]) + len(cells)]
        path = self.scenes[scene].path
        return dict(img_path=path, sample_idx=number, scene=scene, cell=tuple(map(int, cell)))

    def read_window(self, info: dict[str, Any]) -> dict[str, Any]:
        """Draw a window and read it.

        Args:
            info: The result of :meth:`get_data_info`.

        Returns:
            ``img``, 3×H×W uint8 RGB, ``window`` (top, left, height and width in pixels of the
            scene), and ``key_img`` if the key view comes from another window.

        Raises:
            BadImageError: The pixels are damaged.
            EmptyWindowError: No window of the cell has enough data.
        """
        scene = self.scenes[info["scene"]]
        draw = np.random.default_rng(np.random.randint(2**31, size=4))
        window, img = self._read_valid(scene, self._centre(scene, info["cell"]), draw)
        loaded = dict(img=img, window=window)
        if self.neighbour_key:
            top, left, height, width = window
            centre = top + height / 2, left + width / 2
            shift = self.neighbour_key / self._unit(scene)
            near = self._read_valid(scene, centre, draw, shift, fallback=(window, img))
            loaded["key_window"], loaded["key_img"] = near
        return loaded

    def _centre(self, scene: Scene, cell: tuple[int, int]) -> tuple[float, float]:
        height, width = scene.cell_size
        return (cell[0] + 0.5) * height, (cell[1] + 0.5) * width

    def _unit(self, scene: Scene) -> float:
        """Return the length of a pixel in the unit of the window's side."""
        return float(scene.info.pixel_size or 1) if self.in_metres else 1.0

    def _read_valid(
        self,
        scene: Scene,
        centre: tuple[float, float],
        draw: np.random.Generator,
        shift: float | None = None,
        fallback: Any = None,
    ) -> tuple[Window, torch.Tensor]:
        """Draw a window around a centre and read it, moved towards valid pixels if necessary."""
        half = tuple(side / 2 for side in scene.cell_size)
        reach = (half[0], half[1]) if shift is None else (shift, shift)
        best: tuple[float, Any, Raster | None] = (2.0, None, None)
        try:
            with rasters.opened(scene.path) as dataset:
                bands = self.pixel_scale.choose(scene.info)
                window = self._draw_window(scene, centre, draw, reach)
                for _ in range(ATTEMPTS):
                    raster = rasters.read(dataset, bands, window, self._read_as(window))
                    valid = raster.valid & ~is_nodata(raster.values, scene.nodata)
                    lacking = 1 - float(valid.mean())
                    if lacking < best[0]:
                        best = lacking, window, Raster(raster.values, valid)
                    if lacking <= min(CLEAN, self.max_nodata):
                        break
                    moved = _towards_data(window, valid, scene.info)
                    if moved is None or moved == window:
                        moved = self._draw_window(scene, centre, draw, reach)
                    window = moved
            lacking, window, found = best
            if lacking > self.max_nodata or found is None:
                if fallback is not None:
                    return fallback
                raise EmptyWindowError(
                    f"no window at row {centre[0]:.0f}, column {centre[1]:.0f} has more than "
                    f"{1 - self.max_nodata:.0%} of data"
                )
            return window, torch.from_numpy(self.pixel_scale.to_rgb(found, scene.info.kind))
        except (RasterError, BandsError) as error:
            raise BadImageError(str(error)) from error

    def _draw_window(
        self,
        scene: Scene,
        centre: tuple[float, float],
        draw: np.random.Generator,
        reach: tuple[float, float],
    ) -> Window:
        length = draw.uniform(self.window - self.jitter, self.window + self.jitter)
        side = max(1, round(length / self._unit(scene)))
        place = []
        wholes = scene.info.height, scene.info.width
        for middle, whole, far in zip(centre, wholes, reach):
            part = min(side, whole)
            start = middle + draw.uniform(-far, far) - part / 2
            place.append((int(np.clip(round(start), 0, whole - part)), part))
        (top, height), (left, width) = place
        return top, left, height, width

    def _read_as(self, window: Window) -> tuple[int, int] | None:
        """Return the height and width to which a window is reduced while it is read."""
        _, _, height, width = window
        factor = self.read_size / max(height, width)
        if factor >= 1:
            return None
        return max(1, round(height * factor)), max(1, round(width * factor))

    def _census(self, paths: list[str]) -> list[Scene]:
        scenes: list[Scene] = []
        empty: list[Scene] = []
        samples: dict[str, list[np.ndarray]] = {}  # by kind
        sampled = spread(len(paths))
        with progress_bar("examining scenes", "scene", len(paths)) as bar:
            for number, path in enumerate(paths):
                try:
                    side = self._cell_side(path)
                    scene = look_at(path, side, self.nodata, self.asked_scale.choose)
                except (OSError, BandsError) as error:  # RasterError is an OSError.
                    self.bad[path] = " ".join(str(error).split())
                else:
                    if len(scene.cells) and (number in sampled or scene.info.kind not in samples):
                        some = thinned(scene.values, len(paths))
                        samples.setdefault(scene.info.kind, []).append(some)
                    scene = replace(scene, values=scene.values[:, :0])
                    (scenes if len(scene.cells) else empty).append(scene)
                bar.advance()
        self.bad.update({scene.path: "no pixel has data" for scene in empty})
        if not scenes:
            path, reason = next(iter(self.bad.items()))
            raise UserError(
                f"none of {len(paths)} scenes can be used, such as {escape_name(path)}: {reason}"
            )
        self.pixel_scale = self.asked_scale.find(samples)
        logger = MMLogger.get_current_instance()
        logger.info(_summary(scenes))
        if self.bad:
            path, reason = next(iter(self.bad.items()))
            logger.warning(
                f"{len(self.bad)} scenes are left out, such as {escape_name(path)} ({reason})"
            )
        suspected = [f"{escape_name(s.path)} ({s.nodata:g})" for s in scenes if s.suspected]
        if suspected:
            logger.warning(
                f"{len(suspected)} scenes seem to have no data where all bands have one value, "
                f"although they do not declare it: {listed(suspected)}. Set nodata=None to use "
                "these pixels"
            )
        return scenes

    def _cell_side(self, path: str) -> int:
        """Return half the side of the smallest window of a scene, in its pixels."""
        half = (self.window - self.jitter) / 2
        if not self.in_metres:
            return max(1, round(half))
        with rasters.opened(path) as dataset:
            pixel_size = rasters.describe(dataset).pixel_size
        if pixel_size is None:
            raise RasterError(
                "it has no ground scale (no reference system, or no size of a pixel), so "
                "window cannot be in metres. Give window in pixels, such as window=512"
            )
        return max(1, round(half / pixel_size))


def _towards_data(window: Window, valid: np.ndarray, info: RasterInfo) -> Window | None:
    """Move a window by twice the way from its centre to that of its data.

    For a straight border this is the smallest shift after which the window holds only data. The
    result is None if the window has no data at all.
    """
    places = np.nonzero(valid)
    if not len(places[0]):
        return None
    moved = []
    for start, part, whole, place, count in zip(
        window[:2], window[2:], (info.height, info.width), places, valid.shape
    ):
        off_centre = (place.mean() + 0.5) / count - 0.5
        moved.append(int(np.clip(round(start + 2 * off_centre * part), 0, whole - part)))
    return moved[0], moved[1], window[2], window[3]


def _find(data_root: str, files: str | Sequence[str]) -> list[str]:
    """Return the sorted paths of the scenes."""
    if not files:
        if not osp.isdir(data_root):
            raise UserError(f"Scenes: data_root={data_root!r} is not a folder. Correct the path.")
        found = find_images(data_root, RASTER_EXTENSIONS)
    elif isinstance(files, str) and osp.isfile(osp.join(data_root, files)):
        path = osp.join(data_root, files)
        is_list = files.lower().endswith((".txt", ".csv", ".lst"))
        found = ImageList.read(path, data_root, False).paths if is_list else [files]
    elif isinstance(files, str):
        matched = glob.glob(osp.join(glob.escape(data_root), files), recursive=True)
        found = sorted(osp.relpath(path, data_root or os.curdir) for path in matched)
    else:
        found = list(files)
    folders = [path for path in found if osp.isdir(osp.join(data_root, path))]
    if folders:
        raise UserError(f"Scenes: files={folders[0]!r} is a folder. Give it as data_root")
    if not found:
        raise UserError(
            f"Scenes: there is no scene in data_root={data_root!r}, files={files!r} (looked for: "
            f"{' '.join(RASTER_EXTENSIONS)})"
        )
    return [osp.join(data_root, path) for path in found]


def _length(name: str, value: int | float | str, in_metres: bool) -> float:
    """Read a length in pixels or in metres.

    Raises:
        UserError: The value is neither, or has another unit than the window.
    """
    if isinstance(value, str):
        found = _METRES.fullmatch(value)
        if not in_metres or found is None:
            raise UserError(
                f"Scenes: {name}={value!r}: give pixels such as 512, or metres such as '384 m', "
                "for window, jitter and neighbour_key alike"
            )
        return float(found[1])
    check_number(f"Scenes: {name}", value, 1 if name == "window" else 0, such_as=512)
    if in_metres and value:
        raise UserError(
            f"Scenes: {name}={value!r} is in pixels and window in metres. Use one unit for both."
        )
    return float(value)


def _summary(scenes: Sequence[Scene]) -> str:
    windows = sum(len(scene.cells) for scene in scenes)
    kinds = sorted({scene.info.kind for scene in scenes})
    sizes = sorted({scene.info.pixel_size for scene in scenes if scene.info.pixel_size})
    ends = list(dict.fromkeys(f"{size:.3g}" for size in (sizes[:1] + sizes[-1:])))
    ground = f", {' to '.join(ends)} m per pixel" if ends else ""
    pixels = sum(scene.info.width * scene.info.height for scene in scenes) / 1e6
    valid = sum(s.valid_share * s.info.width * s.info.height for s in scenes) / 1e6 / pixels
    return (
        f"{counted(len(scenes), 'scene')}, {pixels:,.0f} million pixels ({valid:.0%} with data), "
        f"{listed(kinds)}{ground}: {windows:,} windows per pass"
    )
