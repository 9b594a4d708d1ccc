"""Time the reading of pairs from windows of a large raster scene in one process.

A pair is two views of one window of 512 px. The scene has three bands of 16 bits, is compressed by
deflate, and is written in tiles and in strips. ``ours`` is ``gersp_mm.Scenes`` in a
``PairedDataset``; ``whole file`` reads the complete file for each pair, as an image library
does; ``torchgeo`` reads the windows of its ``RandomGeoSampler`` and is skipped if it is not
installed. Both use the same pixel scale and views. The memory is the peak of a forked process that
reads like a worker of a data loader, without the pages that it shares with its parent. Linux only.

Examples:
  python benchmarks/speed/scenes.py
  python benchmarks/speed/scenes.py --side 4096 --rounds 3 --record
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from timing import add_arguments, interleave, paired_ratio, print_spreads, quiet, record, spread

import gersp_mm
from gersp_mm.datasets.sampler import PairIndex
from gersp_mm.images import rasters
from gersp_mm.utils.arguments import new_parser

WINDOW, VIEW = 512, 224
OURS, WHOLE, TORCHGEO = "ours", "whole file", "torchgeo"
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": dict(tiled=True, blockxsize=256, blockysize=256),
    "strips": {},
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--side", type=int, default=8192, help="side of the scene in px [%(default)s]"
    )
    parser.add_argument("--pairs", type=int, default=16, help="pairs per round [%(default)s]")
    parser.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="(all)"
    )
    add_arguments(parser, rounds=5)
    return parser.parse_args(argv)


def write_scene(path: Path, side: int, layout: str) -> None:
    """Write a scene of reflectance-like values with structure and noise."""
    rasterio = rasters.import_rasterio()
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((3, side // 8, side // 8)).cumsum(1).cumsum(2)
    coarse = (coarse - coarse.min()) / np.ptp(coarse) * 3000
    profile = dict(driver="GTiff", width=side, height=side, count=3, dtype="uint16",
                   compress="deflate", crs="EPSG:32633",
                   transform=rasterio.transform.from_origin(4e5, 5e6, 10, 10))  # fmt: skip
    with rasterio.open(path, "w", **profile, **LAYOUTS[layout]) as file:
        for number, band in enumerate(coarse, 1):
            noise = rng.integers(0, 60, (side, side), dtype=np.uint16)
            file.write(band.repeat(8, 0).repeat(8, 1).astype(np.uint16) + noise, number)


class Pairs:
    """A reader of pairs of one scene, in three ways."""

    def __init__(self, path: Path) -> None:
        init_default_scope("mmpretrain")
        self.path = path
        self.view = gersp_mm.ViewAugmentation(size=VIEW, colour="workers")
        self.dataset = gersp_mm.PairedDataset(
            remote_sensing=dict(
                type="gersp_mm.Scenes", data_root=str(path.parent), files=path.name, window=WINDOW
            ),
            rs_pipeline=[self.view],
        )
        self.scenes: Any = self.dataset.remote_sensing
        self.scale = self.scenes.pixel_scale
        self.kind = self.scenes.scenes[0].info.kind
        self.rng = np.random.default_rng(0)

    def ours(self, pairs: int) -> None:
        """Read pairs of windows that are spread over the scene."""
        for index in self.rng.integers(0, len(self.dataset), pairs):
            self.dataset[PairIndex(int(index), 0, int(index))]

    def whole_file(self, pairs: int) -> None:
        """Read the complete file for each pair."""
        rasterio = rasters.import_rasterio()
        for _ in range(pairs):
            with rasterio.open(self.path) as file:
                values = file.read()
            top, left = self.rng.integers(0, values.shape[1] - WINDOW, 2)
            self._views(values[:, top : top + WINDOW, left : left + WINDOW])

    def torchgeo(self, pairs: int) -> None:
        """Read the windows of torchgeo's random sampler."""
        from torchgeo.datasets import RasterDataset
        from torchgeo.samplers import RandomGeoSampler

        if not hasattr(self, "geo"):
            self.geo = RasterDataset(str(self.path))
        for query in RandomGeoSampler(self.geo, size=WINDOW, length=pairs):
            self._views(self.geo[query]["image"].numpy())

    def _views(self, values: np.ndarray) -> None:
        raster = rasters.Raster(values, np.ones(values.shape[1:], bool))
        image = torch.from_numpy(self.scale.to_rgb(raster, self.kind))
        for _ in range(2):
            self.view(dict(img=image))


def worker_memory(pairs: Pairs, count: int) -> float:
    """Return the highest memory of a forked process that reads pairs, in MB.

    Pages that it shares with its parent process (PyTorch and other code) are not included.
    """
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_read_and_measure, (pairs.path, count))


def _read_and_measure(path: Path, count: int) -> float:
    pairs = Pairs(path)
    highest = 0.0
    for _ in range(count):
        pairs.ours(1)
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        highest = max(highest, private * 1024 / 1e6)
    return highest


def main(args: argparse.Namespace) -> None:
    """Time the contenders for each layout, measure the memory, and record both."""
    quiet()
    torch.set_num_threads(args.threads or 1)
    for layout in args.layouts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "scene.tif")
            write_scene(path, args.side, layout)
            pairs = Pairs(path)
            counts = {OURS: args.pairs, WHOLE: 1}
            contenders: dict[str, Callable[[], None]] = {
                OURS: functools.partial(pairs.ours, args.pairs),
                WHOLE: functools.partial(pairs.whole_file, 1),
            }
            if importlib.util.find_spec(TORCHGEO):
                contenders[TORCHGEO] = functools.partial(pairs.torchgeo, args.pairs)
                counts[TORCHGEO] = args.pairs
            else:
                print("torchgeo is not installed: skipped (pip install torchgeo)")
            times = {
                name: [seconds / counts[name] for seconds in values]
                for name, values in interleave(contenders, args.rounds, args.warmup).items()
            }
            memory = worker_memory(pairs, 8 * args.pairs)
            size = path.stat().st_size / 1e6
        title = f"{args.side}x{args.side}x3 uint16 deflate in {layout} ({size:.0f} MB)"
        rates = {name: spread([1 / one for one in values]) for name, values in times.items()}
        print_spreads(f"{title} [pairs/s of one process]", rates)
        ratios = {f"{OURS} / {n}": paired_ratio(times, n, OURS) for n in times if n != OURS}
        print_spreads("Ratios of these rates, taken within each round", ratios)
        fastest = {name: min(values) for name, values in times.items()}
        least = {f"{OURS} / {n}": fastest[n] / fastest[OURS] for n in fastest if n != OURS}
        print("Ratios of the fastest rounds:", {name: round(one, 2) for name, one in least.items()})
        print(f"Peak memory of a worker, without what it shares: {memory:.0f} MB")
        values = dict(pairs_per_s=rates, ratios_of_fastest=least, worker_private_mb=memory)
        record(args, f"scenes: {title}", values, ratios)


if __name__ == "__main__":
    main(parse_args())
