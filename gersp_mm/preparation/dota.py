"""Check DOTA v1.0 and cut it into tiles with mmrotate's own splitter."""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from gersp_mm.datasets.dota import (
    DOTA_CLASSES,
    CocoImage,
    LabelledBox,
    area_inside,
    clip_box,
    coco_text,
    format_labels,
    read_labels,
)
from gersp_mm.datasets.known import DOTA
from gersp_mm.engine.runs import ChildRun
from gersp_mm.images.listing import is_image_name
from gersp_mm.preparation.common import (
    SHOWN,
    describe_counts,
    explained,
    findings_text,
    image_size,
    next_command,
    refuse_damaged,
    refuse_incomplete,
    warn,
)
from gersp_mm.utils.console import progress, progress_bar, table
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import remove_temporaries, replacing_folder, write_text

LABEL_FOLDERS = ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.0/labelTxt")
RECORD = "split.json"  # next to finished tiles: how they were made, and of what

# Thresholds and padding are those of mmrotate's single-scale configs for both protocols.
SPLIT = dict(img_rate_thr=0.6, iof_thr=0.7, padding_value=[104, 116, 124], save_ext=".png")

# Runs the splitter; it ends with the process that started it, however that one ends.
RUNNER = """
import os, signal, sys, threading

def end_with_parent():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=end_with_parent, daemon=True).start()
sys.path.insert(0, sys.argv[1])
import img_split
sys.argv = ["img_split.py", *sys.argv[2:]]
img_split.main()
"""
PROGRESS = re.compile(r"\([\d.]+% (\d+):\d+\) - Filename: ")
PNG_END = b"IEND\xaeB`\x82"

LEAST_AREA = 1e-6  # square pixels in the image; less is rounding
ROUNDING = 1e-3  # pixels
TILE = re.compile(r"(?P<image>.+)__[\d.]+__(?P<left>\d+)___(?P<top>\d+)")  # names of the splitter

Findings = defaultdict[str, list[str]]
size_of = functools.cache(image_size)  # Tiles ask for the size of their image again and again.


class Protocol(NamedTuple):
    """How the tiles of a protocol are made."""

    folder: str
    size: int
    gap: int
    parts: dict[str, tuple[str, ...]]  # folders of tiles, and the splits they are made from
    coco: bool
    config: str  # the first to try


PROTOCOLS = {
    "released": Protocol(
        folder="tiles_800_160",
        size=800,
        gap=160,
        parts={"train": ("train",), "val": ("val",)},
        coco=True,
        config="configs/downstream/dota/faster-rcnn_r50_fpn_24e_dota-released.py",
    ),
    "field": Protocol(
        folder="tiles_1024_200",
        size=1024,
        gap=200,
        parts={"trainval": ("train", "val"), "test": ("test",)},
        coco=False,
        config="configs/downstream/dota/rotated-faster-rcnn_le90_r50_fpn_1x_dota-field.py",
    ),
}


class Split(NamedTuple):
    """Whole images and their boxes; no boxes at all for the test images."""

    images: dict[str, Path]
    labels: dict[str, list[LabelledBox]] | None


# ------------------------------------------------------------------------------- whole images


def read_split(data: Path, split: str, findings: Findings) -> Split:
    """Find the images of a split and read their labels.

    Raises:
        UserError: Images or labels are missing, do not fit together or cannot be read.
    """
    folder = data / split / "images"
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_image_name(path.name):
            continue
        if path.stem in images:
            raise UserError(
                f"{path} and {images[path.stem]} have the same name. Remove one of them."
            )
        images[path.stem] = path
    if not images:
        raise UserError(f"{folder} holds no images. Unpack DOTA's {split} images into it.")
    if split == "test":
        return Split(images, None)
    candidates = [data / split / name for name in LABEL_FOLDERS]
    found = next((path for path in candidates if any(path.glob("*.txt"))), None)
    if found is None:
        raise UserError(
            f"{candidates[0]} holds no labels. Unpack the labels of DOTA v1.0 "
            f"({split}/labelTxt-v1.0/labelTxt.zip of the download) into it."
        )
    files = {path.stem: path for path in sorted(found.glob("[!.]*.txt"))}
    for missing, of in (
        (images.keys() - files.keys(), files),
        (files.keys() - images.keys(), images),
    ):
        if missing:
            lacking = "label files" if of is files else "images"
            raise UserError(
                f"{len(missing):,} {lacking} of {data / split} are missing: fetch "
                f"{listed(sorted(missing), SHOWN)} (looked in {found if of is files else folder})"
            )
    labels = {}
    for name, path in progress(files.items(), f"reading labels of {split}", "file"):
        boxes = read_labels(path)
        size = size_of(images[name]) if boxes else (0, 0)
        labels[name] = check_boxes(f"{split}/{path.name}", boxes, size, findings)
        if not labels[name]:
            findings["images without objects, kept"].append(f"{split}/{path.name}")
    return Split(images, labels)


def check_boxes(
    where: str, boxes: Sequence[LabelledBox], size: tuple[int, int], findings: Findings
) -> list[LabelledBox]:
    """Leave out boxes without area or outside the image, and repair those whose sides cross.

    The splitter stops at a box whose sides cross; it becomes the smallest rectangle around its
    corners, which is what mmrotate's data sets make of any box. A box next to the image would lie
    on a tile's padding. One that reaches out of the image stays whole, as in mmrotate.

    Args:
        where: Name of the label file.
        boxes: Boxes of the file.
        size: Width and height of the image, in pixels.
        findings: Receives the oddities, by their kind.
    """
    from shapely.geometry import Polygon  # comes with mmrotate

    kept = []
    for box in boxes:
        if not box.has_area:
            findings["boxes of no area, left out"].append(where)
            continue
        if box.difficulty is None:
            findings["boxes without a difficulty, taken as 0"].append(where)
        elif box.difficulty not in (0, 1):
            findings["boxes with a difficulty other than 0 and 1, kept"].append(where)
        if not Polygon(_points(box)).is_valid:
            corners = cv2.boxPoints(cv2.minAreaRect(_points(box)))
            box = box._replace(corners=tuple(map(float, corners.ravel())))
            if not Polygon(_points(box)).is_valid:
                findings["boxes of no area, left out"].append(where)
                continue
            findings["boxes whose sides cross, made rectangles"].append(where)
        if area_inside(box.corners, *size) <= LEAST_AREA:
            findings["boxes outside the image, left out"].append(where)
            continue
        left, top, right, bottom = box.around
        if min(left, top, size[0] - right, size[1] - bottom) < -ROUNDING:
            findings["boxes that reach out of the image, kept whole"].append(where)
        kept.append(box)
    return kept


def _points(box: LabelledBox) -> np.ndarray:
    return np.array(box.corners, dtype=np.float32).reshape(4, 2)


def join(splits: Sequence[Split], data: Path) -> Split:
    """Put splits together.

    Raises:
        UserError: Two splits have an image of the same name.
    """
    images: dict[str, Path] = {}
    for split in splits:
        twice = sorted(images.keys() & split.images.keys())
        if twice:
            raise UserError(
                f"{data}: {listed(twice, SHOWN)} in more than one split. Fetch the images again."
            )
        images.update(split.images)
    if any(split.labels is None for split in splits):
        return Split(images, None)
    return Split(images, {k: v for split in splits for k, v in (split.labels or {}).items()})


# -------------------------------------------------------------------------------------- tiles


def find_splitter() -> Path:
    """Return the folder of mmrotate's ``img_split.py``.

    Raises:
        UserError: mmrotate or its splitter is not installed.
    """
    spec = importlib.util.find_spec("mmrotate")
    if spec is None or spec.origin is None:
        raise UserError("mmrotate is not installed. Run bash tools/setup_env.sh --downstream.")
    package = Path(spec.origin).parent
    looked = [top / "tools/data/dota/split" for top in (package / ".mim", package.parent)]
    for folder in looked:
        if (folder / "img_split.py").is_file():
            return folder
    raise UserError(
        f"mmrotate's img_split.py is in neither of {', '.join(map(str, looked))}. Install mmrotate "
        "with pip or mim, or as an editable checkout of its repository."
    )


def run_splitter(
    images: Path, labels: Path | None, target: Path, settings: dict, total: int, workers: int
) -> None:
    """Cut images into tiles, with a progress bar.

    Args:
        images: Folder of images.
        labels: Folder of label files, one per image.
        target: Folder to make. The splitter's output goes to a file next to it.
        settings: Arguments of the splitter.
        total: Number of images.
        workers: Number of processes.

    Raises:
        UserError: The splitter failed.
    """
    command: list[object] = [sys.executable, "-c", RUNNER, find_splitter(), "--img-dirs", images]
    command += ["--ann-dirs", labels] if labels else []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        command += [f"--{name.replace('_', '-')}", *values]
    command += ["--save-dir", target, "--nproc", workers]
    log = target.with_name("splitter.log")
    said: deque[str] = deque(maxlen=20)
    with (
        ChildRun(
            "mmrotate's splitter", command, log, stdin=subprocess.PIPE, start_new_session=True
        ) as child,
        progress_bar("cutting tiles", "img", total) as bar,
    ):
        for line in itertools.chain.from_iterable(child.lines()):
            if found := PROGRESS.search(line):
                bar.advance(int(found[1]) - bar.done)
            else:
                said.append(line)
    if code := child.process.returncode:
        raise UserError(
            f"mmrotate's splitter failed with exit code {code}; its last lines:\n" + "\n".join(said)
        )


def fingerprint(split: Split) -> str:
    """Return a hash of the images' names and sizes in bytes, and of the labels."""
    digest = hashlib.sha256()
    for name in sorted(split.images):
        digest.update(f"{name} {split.images[name].stat().st_size}\n".encode())
        digest.update(format_labels(split.labels[name] if split.labels else []).encode())
    return digest.hexdigest()


def is_finished(folder: Path, record: dict) -> bool:
    """Return whether the folder holds finished tiles that match ``record``.

    Raises:
        UserError: The tiles have other settings or sources.
    """
    if not folder.exists():
        return False
    anew = "Add --force to replace it."
    try:
        made = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} is not this tool's work (no {RECORD}). {anew}") from None
    if made.get("settings") != record["settings"]:
        raise UserError(f"{folder} was made with other settings, {made.get('settings')}. {anew}")
    if made.get("source") != record["source"]:
        raise UserError(f"{folder} was made of other images or labels. {anew}")
    if made.get("tiles") != len(list((folder / "images").glob("*.png"))):
        raise UserError(f"{folder} has lost tiles, or has new ones. {anew}")
    return True


def make_tiles(folder: Path, split: Split, record: dict, workers: int) -> None:
    """Cut a split into tiles; the folder appears when all is written.

    Raises:
        UserError: The splitter failed, or made tiles that are not whole.
    """
    with replacing_folder(folder) as new:
        images, labels, tiles = (new.parent / name for name in ("whole", "labels", "tiles"))
        images.mkdir()
        labels.mkdir()
        for name, path in split.images.items():
            # The splitter chooses files by their ending, and reads them by content.
            (images / f"{name}.png").symlink_to(path.resolve())
            if split.labels:
                (labels / f"{name}.txt").write_text(format_labels(split.labels[name]))
        run_splitter(
            images, labels if split.labels else None, tiles, record["settings"],
            len(split.images), workers,
        )  # fmt: skip
        count = check_tiles(tiles, labelled=split.labels is not None)
        for kept in ("images", "annfiles") if split.labels else ("images",):
            os.replace(tiles / kept, new / kept)
        write_text(new / RECORD, json.dumps(dict(record, tiles=count), indent=1))


def check_tiles(tiles: Path, labelled: bool) -> int:
    """Return the number of tiles.

    Raises:
        UserError: There is no tile, a tile is incomplete, or no tile has a box although there are
            labels.
    """
    images = {path.stem: path for path in (tiles / "images").iterdir()}
    annotations = {path.stem: path for path in (tiles / "annfiles").iterdir()}
    for name in sorted(images.keys() | annotations.keys()):
        whole = name in images and name in annotations
        if whole:
            with open(images[name], "rb") as file:
                file.seek(-min(len(PNG_END), images[name].stat().st_size), os.SEEK_END)
                whole = file.read() == PNG_END
        if not whole:
            raise UserError(f"the tile {name} was not written completely. Make room on the disk.")
    if not images or (labelled and not any(p.stat().st_size for p in annotations.values())):
        what = "box in a tile" if images else "tile"
        raise UserError(
            f"mmrotate's splitter made no {what} of {tiles.parent}. Check its settings."
        )
    return len(images)


def read_tiles(folder: Path) -> dict[str, list[LabelledBox]]:
    """Read the boxes of all tiles, in the order of their names."""
    paths = sorted((folder / "annfiles").glob("*.txt"))
    bar = progress(paths, f"reading tiles of {folder.name}", "tile")
    return {path.stem: read_labels(path) for path in bar}


def write_coco(
    path: Path,
    part: str,
    tiles: dict[str, list[LabelledBox]],
    size: int,
    whole: Mapping[str, Path],
    findings: Findings,
) -> None:
    """Write the horizontal boxes around the tiles' boxes, clipped to the image in the tile.

    Args:
        path: File to write.
        part: Name of the folder of tiles.
        tiles: Boxes of each tile.
        size: Width and height of every tile in pixels, padding included.
        whole: The images that the tiles were cut from, by name.
        findings: Mapping that collects oddities.
    """
    images = []
    identity = 0
    for number, (name, boxes) in enumerate(tiles.items(), 1):
        around = []
        for box in boxes:
            cut = clip_box(box.around, *_filled(name, size, whole))
            if cut[2] - cut[0] < 1 or cut[3] - cut[1] < 1:  # mmdet drops it silently.
                findings["horizontal boxes less than a pixel wide or high, left out"].append(name)
                continue
            if cut != box.around:
                findings["horizontal boxes clipped to their tile"].append(name)
            identity += 1
            around.append((identity, box.name, cut))
        images.append(CocoImage(number, f"{part}/images/{name}.png", size, size, around))
    write_text(path, coco_text(DOTA_CLASSES, images))


def _filled(tile: str, size: int, whole: Mapping[str, Path]) -> tuple[int, int]:
    """Return width and height of the image in a tile; the rest of the tile is padding."""
    place = TILE.fullmatch(tile)
    assert place is not None, tile
    width, height = size_of(whole[place["image"]])
    return min(size, width - int(place["left"])), min(size, height - int(place["top"]))


# --------------------------------------------------------------------------------------- tool


def show_tables(
    whole: dict[str, Split], tiles: dict[str, dict[str, list[LabelledBox]]], test_tiles: int
) -> None:
    """Print images, tiles and boxes of every part, and its boxes by class."""
    rows: list[list[object]] = []
    columns: dict[str, Counter[str]] = {}
    for part, split in whole.items():
        if split.labels is None:
            rows.append([part, len(split.images), "", "", test_tiles, "", "", ""])
            continue
        boxes = [box for found in split.labels.values() for box in found]
        cut = [box for found in tiles[part].values() for box in found]
        rows.append(
            [
                part, len(split.images), len(boxes), sum(bool(box.difficulty) for box in boxes),
                len(tiles[part]), sum(not found for found in tiles[part].values()),
                len(cut), sum(box.difficulty == 2 for box in cut),
            ]
        )  # fmt: skip
        columns[part] = Counter(box.name for box in boxes)
        columns[f"{part} difficult"] = Counter(box.name for box in boxes if box.difficulty)
        columns[f"{part} tiles"] = Counter(box.name for box in cut)
    header = ["part", "images", "boxes", "difficult", "tiles", "empty tiles", "boxes in tiles"]
    print(f"\n{table([*header, 'cut boxes'], rows)}")
    by_class = [[name, *(count[name] for count in columns.values())] for name in DOTA_CLASSES]
    by_class.append(["all", *(sum(count.values()) for count in columns.values())])
    print(f"\n{table(['boxes', *columns], by_class)}")


def convert(
    data: Path,
    protocol: Protocol,
    workers: int = 1,
    decode: bool = True,
    force: bool = False,
    allow_incomplete: bool = False,
) -> None:
    """Cut the missing tiles of a protocol and print the counts.

    Args:
        data: Folder of the data set.
        protocol: One of :data:`PROTOCOLS`.
        workers: Processes that cut, and threads that decode.
        decode: Whether every image is decoded before.
        force: Whether finished tiles are made again.
        allow_incomplete: Whether splits of other sizes than the release's are taken.

    Raises:
        UserError: Images or labels are missing, do not fit together or cannot be read.
    """
    find_splitter()
    findings: Findings = defaultdict(list)
    target = data / protocol.folder
    whole: dict[str, Split] = {}
    counts: dict[str, int] = {}
    for part, sources in protocol.parts.items():
        if sources == ("test",) and not (data / "test" / "images").is_dir():
            warn(
                f"{target / 'test'} is not made, which a submission needs: there is no "
                f"{data / 'test' / 'images'}. Unpack it there and run the same command again"
            )
            continue
        splits = [read_split(data, source, findings) for source in sources]
        counts.update({name: len(split.images) for name, split in zip(sources, splits)})
        whole[part] = join(splits, data)
        labels = whole[part].labels
        if labels is not None and not any(labels.values()):
            raise UserError(f"no label file of {', '.join(sources)} in {data} has a box")
    join([*whole.values()], data)  # which refuses an image of two parts
    differences = describe_counts(counts, DOTA.counts)
    refuse_incomplete(data, DOTA.title, differences, allow_incomplete, findings=findings)
    settings = dict(sizes=[protocol.size], gaps=[protocol.gap], rates=[1.0], **SPLIT)
    records = {
        part: dict(settings=settings, source=fingerprint(split)) for part, split in whole.items()
    }
    pending = [part for part in whole if force or not is_finished(target / part, records[part])]
    if decode and pending:
        refuse_damaged([p for part in pending for p in whole[part].images.values()], workers)
    remove_temporaries(target)
    for part in whole:
        if part in pending:
            make_tiles(target / part, whole[part], records[part], workers)
            print(f"wrote {target / part}")
        else:
            print(f"{target / part} is finished already")
    tiles = {part: read_tiles(target / part) for part in whole if whole[part].labels is not None}
    if protocol.coco:
        remove_temporaries(target / "coco")
        for part, found in tiles.items():
            path = target / "coco" / f"{part}.json"
            write_coco(path, part, found, protocol.size, whole[part].images, findings)
            print(f"wrote {path}")
    test_tiles = len(list((target / "test" / "images").glob("*.png")))
    show_tables(whole, tiles, test_tiles)
    print(f"\n{findings_text(findings) or 'nothing odd was found'}")
    print(next_command(protocol.config, data, "dota"))


def run(args: argparse.Namespace) -> None:
    """Check DOTA and cut it into the tiles of one protocol."""
    protocol, decode = PROTOCOLS[args.protocol], not args.no_decode
    with explained(args.data):
        convert(args.data, protocol, args.workers, decode, args.force, args.allow_incomplete)
