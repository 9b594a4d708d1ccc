"""Cut raster scenes into tiles, and list the place of each tile."""

from __future__ import annotations

import argparse
import json
import os
import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from gersp_mm.datasets.scenes import RASTER_EXTENSIONS
from gersp_mm.images import rasters
from gersp_mm.images.census import look_at
from gersp_mm.images.listing import find_images, write_list
from gersp_mm.images.packed import LISTING
from gersp_mm.images.pixels import BandsError, PixelScale, Scale, is_nodata
from gersp_mm.images.rasters import Raster, RasterInfo
from gersp_mm.images.scaling import spread, take_samples, thinned
from gersp_mm.preparation.common import explained, write_reasons
from gersp_mm.preparation.pack import (
    FOLDER,
    GO_ON,
    PROGRESS,
    check_names,
    open_record,
    run_workers,
)
from gersp_mm.utils.console import progress
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import replacing, write_text

TILES, SCALE = "tiles.jsonl", "pixel_scale.json"
TIF, PNG, JPEG = "tif", "png", "jpg"


class Cut(NamedTuple):
    """Result of cutting one scene.

    Attributes:
        name: Path of the scene relative to the source.
        tiles: The lines of its tiles in ``tiles.jsonl``.
        left_out: Number of tiles with too little data.
        bad: Why the scene cannot be read; empty where it can.
        failed: Why a tile cannot be written; empty where all can.
    """

    name: str
    tiles: list[dict[str, Any]]
    left_out: int = 0
    bad: str = ""
    failed: str = ""


@dataclass
class Cutter(Dataset):
    """Data set that cuts one scene per item, for the worker processes; see :func:`tile`."""

    source: Path
    target: Path
    size: int
    overlap: int
    max_nodata: float
    kind: str
    quality: int
    scale: PixelScale  # with its limits

    def __getitem__(self, name: str) -> Cut:
        path = str(self.source / name)
        tiles: list[dict[str, Any]] = []
        left_out = 0
        try:
            scene = look_at(path, self.size)
            nodata = scene.nodata if scene.suspected else None
            with rasters.opened(path) as dataset:
                bands = scene.info.bands if self.kind == TIF else self.scale.choose(scene.info)
                for window in windows(scene.info, self.size, self.overlap):
                    values, valid = rasters.read(dataset, bands, window)
                    valid &= ~is_nodata(values, nodata)
                    lacking = 1 - float(valid.mean())
                    if lacking > self.max_nodata:
                        left_out += 1
                        continue
                    stem = osp.splitext(name)[0]
                    tile = f"{FOLDER}/{stem}_{window[0]}_{window[1]}.{self.kind}"
                    place = rasters.georeference(dataset, window)
                    try:
                        self._write(
                            tile, dataset, window, Raster(values, valid), scene.info, nodata
                        )
                    except OSError as error:
                        if isinstance(error, rasters.RasterError):
                            raise
                        return Cut(name, [], failed=str(error))
                    tiles.append(
                        dict(
                            path=tile, scene=name, window=window, **place, nodata=round(lacking, 4)
                        )
                    )
        except (OSError, BandsError) as error:  # RasterError is an OSError.
            return Cut(name, [], bad=" ".join(str(error).split()))
        return Cut(name, tiles, left_out)

    def _write(
        self,
        tile: str,
        dataset: Any,
        window: tuple[int, int, int, int],
        raster: Raster,
        info: RasterInfo,
        nodata: float | None,
    ) -> None:
        with replacing(self.target / tile) as temporary:
            if self.kind == TIF:
                rasters.copy_window(dataset, window, str(temporary), nodata)
                return
            levels = self.scale.to_rgb(raster, info.kind).transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(levels))
            if self.kind == JPEG:
                image.save(temporary, "JPEG", quality=self.quality, subsampling=0)
            else:
                image.save(temporary, "PNG")


def windows(info: RasterInfo, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Return the windows of the tiles of a scene: top, left, height and width in pixels."""
    height, width = min(size, info.height), min(size, info.width)
    tops, lefts = (_starts(whole, size, overlap) for whole in (info.height, info.width))
    return [(top, left, height, width) for top in tops for left in lefts]


def _starts(whole: int, size: int, overlap: int) -> list[int]:
    last = max(0, whole - size)
    return sorted({*range(0, last, size - overlap), last})


def tile(
    source: Path,
    target: Path,
    size: int = 512,
    overlap: int = 0,
    max_nodata: float = 0.1,
    kind: str = TIF,
    quality: int = 95,
    bands: Sequence[int | str] | None = None,
    scale: Scale = "percentile",
    workers: int = 0,
) -> dict[str, Cut]:
    """Cut the scenes of a folder into tiles, or resume it.

    Args:
        source: Folder of the scenes.
        target: Folder to create.
        size: Side of a tile in pixels.
        overlap: Pixels that neighbouring tiles share.
        max_nodata: Largest share of a tile without data, in [0, 1].
        kind: ``'tif'``, ``'png'`` or ``'jpg'``.
        quality: Quality of JPEG, 1 to 100.
        bands: Bands of PNG and JPEG tiles, see :class:`gersp_mm.images.pixels.PixelScale`.
        scale: Scale of PNG and JPEG tiles, see :class:`gersp_mm.images.pixels.PixelScale`.
        workers: Number of worker processes; 0 works in this process.

    Returns:
        The result of each scene, by its name.

    Raises:
        UserError: There is no scene, none can be used, a setting cannot be used, or a file cannot
            be written.
    """
    if size < 1 or not 0 <= overlap < size or not 0 <= max_nodata <= 1 or not 1 <= quality <= 100:
        raise UserError(
            "--size is at least 1, --overlap is at least 0 and smaller, --max-nodata is 0 to 1, "
            "--quality is 1 to 100"
        )
    source, target = source.resolve(), target.resolve()
    if not source.is_dir():
        raise UserError(f"{source} is no folder: SRC is the folder of the scenes")
    if target.is_relative_to(source):
        raise UserError(f"{target} is inside {source}. Choose a DST outside of SRC.")
    if kind == TIF and (bands or scale != "percentile"):
        raise UserError(
            "--bands and --scale are for PNG and JPEG, as GeoTIFF keeps all values. Leave them out."
        )
    names = find_images(source, RASTER_EXTENSIONS, progress=True)
    if not names:
        raise UserError(f"{source} holds no scene (looked for: {' '.join(RASTER_EXTENSIONS)})")
    check_names(names, None)
    _refuse_same_stems(names)
    asked = PixelScale(scale, bands)  # type: ignore[arg-type]
    settings = dict(source=str(source), size=size, overlap=overlap, max_nodata=max_nodata, to=kind,
                    quality=quality, pixel_scale=asked.as_dict())  # fmt: skip
    with explained(target, GO_ON):
        noted = open_record(target / PROGRESS, settings)
        cuts = {cut.name: cut for cut in (Cut(*values) for values in noted)}
        pending = [name for name in names if name not in cuts or cuts[name].bad]
        found = _pixel_scale(source, target, names, size, asked, kind)
        cutter = Cutter(source, target, size, overlap, max_nodata, kind, quality, found)
        results = run_workers(cutter, pending, min(workers, len(pending)))
        with open(target / PROGRESS, "ab") as record:
            for cut in progress(results, "cutting", "scene", len(names), len(names) - len(pending)):
                if cut.failed:
                    raise OSError(cut.failed)
                cuts[cut.name] = cut
                record.write(json.dumps(cut).encode() + b"\n")
                record.flush()
                os.fsync(record.fileno())
        cuts = {name: cuts[name] for name in names}
        _write_lists(target, cuts)
    return cuts


def _pixel_scale(
    source: Path, target: Path, names: Sequence[str], size: int, asked: PixelScale, kind: str
) -> PixelScale:
    """Return the scale of PNG and JPEG tiles, from an interrupted run if there is one."""
    if kind == TIF:
        return asked
    path = target / SCALE
    if path.is_file():
        stored = PixelScale.stored(json.loads(path.read_text(encoding="utf-8")))
        if stored is not None:
            return stored
    paths = [str(source / name) for name in names]

    def sampler(index: int) -> tuple[str, np.ndarray]:
        scene = look_at(paths[index], size, choose=asked.choose)
        return scene.info.kind, thinned(scene.values, len(paths))

    samples = take_samples(str(source), spread(len(paths)), paths.__getitem__, sampler)
    found = asked.find(samples)
    write_text(path, json.dumps(found.as_dict(), indent=2))
    return found


def _refuse_same_stems(names: Sequence[str]) -> None:
    stems: dict[str, str] = {}
    for name in names:
        first = stems.setdefault(osp.splitext(name)[0], name)
        if first != name:
            raise UserError(f"{first} and {name} would get tiles of the same names. Rename one.")


def _write_lists(target: Path, cuts: dict[str, Cut]) -> None:
    bad = {name: cut.bad for name, cut in cuts.items() if cut.bad}
    write_reasons(target / "bad_images.txt", bad)
    tiles = [tile for cut in cuts.values() for tile in cut.tiles]
    if not tiles:
        name, cut = next(iter(cuts.items()))
        raise UserError(
            f"None of the {len(cuts):,} scenes gave a tile, {name} for: "
            f"{cut.bad or 'too little data'}. Change SRC or the options {GO_ON}."
        )
    write_text(target / TILES, "".join(f"{json.dumps(tile)}\n" for tile in tiles))
    write_list(
        target / LISTING, [tile["path"] for tile in tiles]
    )  # written last, as a sign that all is complete


def run(args: argparse.Namespace) -> None:
    """Cut the scenes of a folder into tiles."""
    cuts = tile(
        args.source, args.target, args.size, args.overlap, args.max_nodata, args.to, args.quality,
        args.bands, args.scale, args.workers,
    )  # fmt: skip
    tiles = sum(len(cut.tiles) for cut in cuts.values())
    left_out = sum(cut.left_out for cut in cuts.values())
    bad = sum(bool(cut.bad) for cut in cuts.values())
    print(
        f"{len(cuts) - bad:,} scenes gave {tiles:,} tiles; {left_out:,} tiles without enough data "
        f"and {bad:,} scenes that cannot be read are left out\nwrote {args.target / LISTING}"
    )
