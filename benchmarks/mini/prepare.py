#!/usr/bin/env python3
"""Prepare the images of the study GeRSP-mini as lists of paths, without copies.

Needed below DATA (default data, or $GERSP_DATA):

  eurosat/                 after python tools/dataset_converters/eurosat.py data/eurosat
  tiny-imagenet-200/       train/<class>/images/*.JPEG, http://cs231n.stanford.edu/tiny-imagenet-200.zip
  NWPU-RESISC12/           {train,test}/<class>/*.jpg, for the evaluation (optional)
  demo/                    after python demo/prepare_demo.py (optional)

--download fetches the first two (95 and 237 MB) and prepares EuroSAT. Tiny-ImageNet is a part of
ImageNet: its terms allow non-commercial research.

Written to DATA/mini_<size>: remote_sensing.txt, EuroSAT's training images without labels;
natural.txt, the images that benchmarks/mini/natural.txt names, with labels; natural_paths.txt and
both.txt for the rows without labels; eurosat_train.txt (200 training images per class),
eurosat_finetune.txt (50 of these per class), eurosat_val.txt and eurosat_test.txt (cpu: 300 per
class) for the evaluation.

Examples:
  python benchmarks/mini/prepare.py
  python benchmarks/mini/prepare.py --size gpu --download
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from gersp_mm.commands.options import run_tool
from gersp_mm.evaluation.features import read_source
from gersp_mm.images.listing import write_list
from gersp_mm.resources import data_root
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.console import table
from gersp_mm.utils.errors import UserError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Number of EuroSAT's images, of natural images per class, and of EuroSAT's test images per class.
SIZES = dict(cpu=(9_600, 48, 300), gpu=(16_200, 81, 10_000))
EVALUATED, FINETUNED = 200, 50  # EuroSAT's training images per class
EUROSAT_URL = (
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip"
)
EUROSAT_MD5 = "c8fa014336c82ac7804f0398fcb19387"  # as in torchvision
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def rank(path: str) -> str:
    """Return the sort key by which a subset of images is chosen."""
    return hashlib.sha256(f"gersp-mini:{path}".encode()).hexdigest()


def download(data: Path) -> None:
    """Fetch the missing files of EuroSAT and Tiny-ImageNet."""
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        if not (data / "eurosat" / "2750").is_dir():
            download_and_extract_archive(EUROSAT_URL, str(data / "eurosat"), md5=EUROSAT_MD5)
        if not (data / "tiny-imagenet-200" / "train").is_dir():
            download_and_extract_archive(TINY_URL, str(data))
    except (OSError, RuntimeError) as error:  # RuntimeError: another md5
        raise UserError(
            f"cannot download: {error}; fetch the archives by hand, see --help"
        ) from None
    converter = ROOT / "tools" / "dataset_converters" / "eurosat.py"
    if subprocess.call([sys.executable, str(converter), str(data / "eurosat")]):
        raise SystemExit(1)


def eurosat(data: Path, part: str) -> list[tuple[str, int]]:
    """Return the images of a part of the split, relative to ``data``, with labels."""
    path = data / "eurosat" / "splits" / "eurosat-gersp-1" / f"{part}.txt"
    if not path.is_file():
        raise UserError(
            f"there is no {path}: run python tools/dataset_converters/eurosat.py {data}/eurosat, "
            "or this script with --download"
        )
    return read_source(path, "eurosat")


def natural(data: Path, each: int) -> list[str]:
    """Return ``path label`` of the natural images; ``natural.txt`` holds their numbers, in order.

    Raises:
        UserError: An image is missing.
    """
    found = []
    lines = (HERE / "natural.txt").read_text(encoding="utf-8").splitlines()
    for label, line in enumerate(line for line in lines if not line.startswith("#")):
        name, *numbers = line.split()
        folder = f"tiny-imagenet-200/train/{name}/images"
        images = sorted(f"{folder}/{name}_{number}.JPEG" for number in numbers[:each])
        found += [f"{image} {label}" for image in images]
    missing = [line for line in found if not (data / line.rpartition(" ")[0]).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(found)} natural images are not below {data}, such as "
            f"{missing[0].rpartition(' ')[0]}: unpack {TINY_URL} there, or use --download"
        )
    return found


def some_of_each_class(entries: list[tuple[str, int]], count: int) -> list[str]:
    """Return ``path label`` of ``count`` images per class."""
    classes = defaultdict(list)
    for path, label in entries:
        classes[label].append(path)
    return [
        f"{path} {label}"
        for label in sorted(classes)
        for path in sorted(sorted(classes[label], key=rank)[:count])
    ]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of this script."""
    parser = new_parser(__doc__)
    data = data_root()
    parser.add_argument("data", nargs="?", type=Path, default=data, metavar="DATA")
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--download", action="store_true", help="fetch missing files")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Download the images if asked, and write the lists of the study."""
    if args.download:
        download(args.data)
    unlabelled, each, tested = SIZES[args.size]
    train = eurosat(args.data, "train")
    labelled = natural(args.data, each)
    paths = [line.rpartition(" ")[0] for line in labelled]
    aerial = sorted(sorted((path for path, _ in train), key=rank)[:unlabelled])
    lists = {
        "remote_sensing": aerial,
        "natural": labelled,
        "natural_paths": paths,
        "both": paths + aerial,
    }
    evaluated = {
        "eurosat_train": some_of_each_class(train, EVALUATED),
        "eurosat_finetune": some_of_each_class(train, FINETUNED),
        "eurosat_val": [f"{path} {label}" for path, label in eurosat(args.data, "val")],
        "eurosat_test": some_of_each_class(eurosat(args.data, "test"), tested),
    }
    for name, lines in evaluated.items():  # relative to the list, as the evaluation reads them
        lists[name] = [f"../{line}" for line in lines]
    folder = args.data / f"mini_{args.size}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        write_list(folder / f"{name}.txt", lines)
    print(table(["list", "images"], [[name, len(lines)] for name, lines in lists.items()]))
    print(f"written to {folder}; next: python benchmarks/mini/run.py --size {args.size}")


if __name__ == "__main__":
    run_tool(main, parse_args())
