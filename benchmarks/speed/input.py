"""Time the reading, augmentation and collation of pairs in one process on one core.

A pair is one remote-sensing image in two views and one natural image. The sources are JPEG files
of three kinds, cut from real images: 256 px and 500×375 (views of 224 px) and 64 px (views of
64 px). Only the released pipeline normalises its images here; the others leave this to the
training device, and ``ours, colour on the device`` also leaves colour and flips to it. The released
code decodes every file twice; ``one decode`` shows its speed without this mistake.

Examples:
  python benchmarks/speed/input.py
  python benchmarks/speed/input.py --sources 256 --pairs 64 --rounds 10 --record
  python benchmarks/speed/input.py --images /my/large/images --only "ours, all on CPU" released
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import multiprocessing
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import peers
import torch
from mmengine.registry import init_default_scope
from PIL import Image
from timing import (
    ROOT,
    add_arguments,
    interleave,
    paired_ratio,
    print_spreads,
    quiet,
    record,
    spread,
)
from torch.utils.data import default_collate
from torchvision.transforms import v2

import gersp_mm
from gersp_mm.augmentation.view import PRESETS
from gersp_mm.datasets import collate_pairs
from gersp_mm.datasets.sampler import PairIndex
from gersp_mm.images.listing import find_images
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.memory import keep_freed_memory

# name: width and height of the files, side of the views
SOURCES = {"256": ((256, 256), 224), "500x375": ((500, 375), 224), "64": ((64, 64), 64)}
JPEG_QUALITY = 90
OURS: dict[str, dict[str, Any]] = {
    "ours, colour on the device": dict(colour="device"),
    "ours, all on CPU": dict(colour="workers"),
    "ours, reference path (PIL)": dict(colour="workers", engine="pil"),
}
RELEASED, RELEASED_ONCE = "released", "released, one decode"
MMPRETRAIN, TORCHVISION = "mmpretrain cv2", "torchvision v2"
CONTENDERS = (*OURS, RELEASED, RELEASED_ONCE, MMPRETRAIN, TORCHVISION)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--images",
        type=Path,
        default=ROOT / "data" / "demo",
        help="folder of real images, searched with its sub-folders (%(default)s)",
    )
    parser.add_argument(
        "--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="(all)"
    )
    parser.add_argument(
        "--files", type=int, default=64, help="read N files of each source [%(default)s]"
    )
    parser.add_argument(
        "--pairs", type=int, default=32, help="time N pairs per round [%(default)s]"
    )
    parser.add_argument("--batch", type=int, default=32, help="use N pairs per batch [%(default)s]")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="NAME", help="(all)"
    )
    add_arguments(parser, rounds=10)
    return parser.parse_args(argv)


def write_sources(
    images: Path, folder: Path, size: tuple[int, int], count: int
) -> tuple[peers.Source, peers.Source]:
    """Cut JPEG files of one size from real images: as many for each of the two sources.

    Large images are cut at their own resolution, so that the files are as detailed as real ones;
    smaller images are enlarged. JPEG files of exactly this size are copied.
    """
    found = [images / name for name in find_images(images)]
    if not found:
        raise SystemExit(f"no images below {images}: run demo/prepare_demo.py, or give --images")
    rng = random.Random(0)
    kinds = {"remote_sensing": found, "natural": found}
    for kind in kinds:  # the demo's folders have these names
        named = [path for path in found if kind in path.relative_to(images).parts]
        kinds[kind] = named or found
    if "scenes" in {path.relative_to(images).parts[0] for path in found}:
        kinds["remote_sensing"] = [p for p in found if "scenes" in p.relative_to(images).parts]
    sources = []
    for kind, paths in kinds.items():
        (folder / kind).mkdir(parents=True)
        chosen = rng.sample(paths, min(count, len(paths)))
        entries = []
        for number in range(count):
            cut = _cut(chosen[number % len(chosen)], size, rng)
            path = folder / kind / f"{number:04d}.jpg"
            if cut is None:
                shutil.copyfile(chosen[number % len(chosen)], path)
            else:
                cut.save(path, quality=JPEG_QUALITY)
            entries.append((str(path), number % 10))
        sources.append(entries)
    return sources[0], sources[1]


_OPENED: dict[Path, Image.Image] = {}


def _cut(path: Path, size: tuple[int, int], rng: random.Random) -> Image.Image | None:
    """Return a random part of an image; None for a JPEG of the wanted size."""
    if path not in _OPENED:
        with Image.open(path) as image:
            _OPENED[path] = image.convert("RGB")
    image = _OPENED[path]
    if image.size == size and path.suffix.lower() in (".jpg", ".jpeg"):
        return None
    scale = max(1.0, size[0] / image.width, size[1] / image.height)
    width, height = size[0] / scale, size[1] / scale
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def our_pairs(
    remote_sensing: peers.Source, natural: peers.Source, size: int, **arguments: Any
) -> gersp_mm.PairedDataset:
    """Return ``gersp_mm.PairedDataset`` with the released augmentation."""
    folder = Path(natural[0][0]).parent
    annotations = folder.parent / "natural.txt"
    annotations.write_text("".join(f"{Path(path).name} {label}\n" for path, label in natural))
    view = dict(type="gersp_mm.ViewAugmentation", preset="released", size=size, **arguments)
    return gersp_mm.PairedDataset(
        remote_sensing=dict(
            type="gersp_mm.MillionAID", data_root=str(Path(remote_sensing[0][0]).parent)
        ),
        natural=dict(
            type="CustomDataset", data_root="", data_prefix=str(folder), ann_file=str(annotations)
        ),
        rs_pipeline=[view],
        natural_pipeline=[view],
    )


class TorchvisionPairs(peers.ReleasedPairs):
    """The same transforms from torchvision v2 on uint8 tensors; each file decoded once, by PIL."""

    def __init__(self, remote_sensing: peers.Source, natural: peers.Source, size: int) -> None:
        super().__init__(remote_sensing, natural, size)
        parts = PRESETS["released"]
        self.rs_transform = self.natural_transform = v2.Compose([
            v2.PILToTensor(),
            v2.RandomResizedCrop(size, scale=parts["scale"], antialias=True),
            v2.RandomGrayscale(parts["grayscale_prob"]),
            v2.ColorJitter(*parts["jitter"]),
            v2.RandomHorizontalFlip(parts["horizontal_flip_prob"]),
        ])  # fmt: skip

    def _read(self, path: str) -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")


def contenders(
    names: Sequence[str],
    remote_sensing: peers.Source,
    natural: peers.Source,
    size: int,
    pairs: int,
    batch: int,
) -> dict[str, Callable[[], None]]:
    """Return functions that load ``pairs`` pairs in batches, by name."""
    sources = (remote_sensing, natural, size)
    makers: dict[str, Callable[[], Any]] = {
        RELEASED: lambda: peers.ReleasedPairs(*sources),
        RELEASED_ONCE: lambda: peers.ReleasedPairs(*sources, decodes=1),
        MMPRETRAIN: lambda: peers.MMPretrainPairs(*sources),
        TORCHVISION: lambda: TorchvisionPairs(*sources),
    }
    loads: dict[str, Callable[[], None]] = {}
    for name in names:
        if name in OURS:
            dataset: Any = our_pairs(*sources, **OURS[name])
            loads[name] = _loader(dataset, collate_pairs, _pair_indices(dataset, pairs), batch)
        else:
            collate = _collate_mmpretrain if name == MMPRETRAIN else default_collate
            loads[name] = _loader(makers[name](), collate, range(pairs), batch)
    return loads


def _loader(
    dataset: Any, collate: Callable[[list], Any], indices: Sequence[Any], batch: int
) -> Callable[[], None]:
    def load() -> None:
        for start in range(0, len(indices), batch):
            collate([dataset[index] for index in indices[start : start + batch]])

    return load


def _pair_indices(dataset: Any, pairs: int) -> list[PairIndex]:
    rs, natural = dataset.sizes
    return [PairIndex(i % rs, i % natural, i) for i in range(pairs)]


def _collate_mmpretrain(samples: list[dict[str, Any]]) -> Any:
    from mmengine.dataset import default_collate as collate

    return {name: collate([sample[name] for sample in samples]) for name in samples[0]}


@contextlib.contextmanager
def as_workers(loads: dict[str, Callable[[], None]]) -> Iterator[dict[str, Callable[[], None]]]:
    """Give every contender a separate process, set up like a worker of its data loader.

    Every process has one thread. Ours also runs the preparation of workers in
    ``gersp_mm.engine.loop``. Only one process loads at a time; the others wait.
    """
    context = multiprocessing.get_context("fork")
    ends, processes = {}, []
    for name, load in loads.items():
        ends[name], end = context.Pipe()
        process = context.Process(target=_serve, args=(end, load, name in OURS), daemon=True)
        process.start()
        processes.append(process)
    yield {name: functools.partial(_ask, end) for name, end in ends.items()}
    for process in processes:
        process.kill()
        process.join()


def _serve(end: Any, load: Callable[[], None], ours: bool) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if ours:
        keep_freed_memory()
        gc.freeze()
    # In a worker our data set need not restore the random state.
    with mock.patch("gersp_mm.datasets.paired.get_worker_info", new=object):
        while end.recv():
            load()
            end.send(True)


def _ask(end: Any) -> None:
    end.send(True)
    end.recv()


def main(args: argparse.Namespace) -> None:
    """Time the loading of all contenders for each kind of source and record it."""
    quiet()
    init_default_scope("mmpretrain")
    for name in args.sources:
        file_size, view = SOURCES[name]
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            sources = write_sources(args.images, Path(folder), file_size, args.files)
            size_kb = (
                np.mean([Path(path).stat().st_size for path, _ in [*sources[0], *sources[1]]]) / 1e3
            )
            loads = contenders(args.only, *sources, view, args.pairs, args.batch)
            with as_workers(loads) as ask:
                times = interleave(ask, args.rounds, args.warmup)
        title = f"{file_size[0]}x{file_size[1]} JPEG ({size_kb:.0f} kB) to views of {view} px"
        rates = {who: spread([args.pairs / s for s in seconds]) for who, seconds in times.items()}
        print_spreads(f"{title} [pairs/s of one core]", rates)
        ratios = {
            f"{ours} / {who}": paired_ratio(times, who, ours)
            for ours in OURS
            if ours in times
            for who in times
            if who not in OURS
        }
        print_spreads("Ratios of these rates, taken within each round", ratios)
        record(args, f"input: {title}", dict(pairs_per_s_per_core=rates), ratios)


if __name__ == "__main__":
    main(parse_args())
