"""Write DIOR's boxes as COCO json (horizontal) and DOTA text (oriented), after a check."""

from __future__ import annotations

import argparse
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gersp_mm.datasets.dior import (
    DIOR_CLASSES,
    HORIZONTAL,
    IMAGE_FOLDERS,
    ORIENTED,
    DiorAnnotation,
    read_annotation,
    read_split,
)
from gersp_mm.datasets.dota import (
    Box,
    CocoImage,
    LabelledBox,
    area_inside,
    clip_box,
    coco_text,
    format_labels,
)
from gersp_mm.datasets.known import DIOR
from gersp_mm.preparation.common import (
    describe_counts,
    explained,
    findings_text,
    first_lines,
    image_size,
    next_command,
    refuse_damaged,
    refuse_incomplete,
    warn,
)
from gersp_mm.utils.console import progress, table
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import remove_temporaries, replacing_folder, write_text

KINDS = {HORIZONTAL: "horizontal", ORIENTED: "oriented"}
PARTS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
LEAST_AREA = 1e-6  # square pixels in the image; less is rounding
OBJECT_LIMIT = 10_000  # of an image: annotation n of image i has the id 10000 i + n in every file

Annotations = dict[str, dict[str, DiorAnnotation]]  # by kind and image
Findings = defaultdict[str, list[str]]


def read_splits(data: Path) -> dict[str, list[str]]:
    """Read the three lists.

    Raises:
        UserError: A list is missing, damaged, or has an image of another one.
    """
    splits = {name: read_split(data / "ImageSets" / "Main" / f"{name}.txt") for name in DIOR.counts}
    owner: dict[int, str] = {}
    for split, names in splits.items():
        for name in names:
            other = owner.setdefault(int(name), split)
            if other != split:
                raise UserError(
                    f"{data / 'ImageSets' / 'Main'}: image {name} is in {other}.txt and in "
                    f"{split}.txt. Fetch the lists again."
                )
    return splits


def refuse_missing(wanted: Sequence[Path], advice: str) -> None:
    """Raise a :class:`UserError` that names the files which do not exist."""
    present: dict[Path, set[str]] = {}
    for folder in {path.parent for path in wanted}:
        present[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [path for path in wanted if path.name not in present[path.parent]]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(wanted):,} files do not exist: {advice}"
            f"{first_lines(missing)}"
        )


def read_annotations(data: Path, kind: str, names: Sequence[str]) -> dict[str, DiorAnnotation]:
    """Read the XML file of every image, with a progress bar.

    Raises:
        UserError: A file is missing or cannot be read, or the data set is not complete.
    """
    folder = data / "Annotations" / kind
    paths = {name: folder / f"{name}.xml" for name in names}
    refuse_missing([*paths.values()], f"every image of the lists needs one; fetch {kind!r} again")
    bar = progress(paths.items(), f"reading {KINDS[kind]} boxes", "xml")
    return {name: read_annotation(path, kind) for name, path in bar}


def read_sizes(images: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """Read width and height of every image from its header, with a progress bar.

    Raises:
        UserError: A file is no image.
    """
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(image_size, images.values())
        return dict(zip(images, progress(sizes, "reading sizes", "img", len(images))))


def written_sizes(
    names: Sequence[str], annotations: Annotations, findings: Findings
) -> dict[str, tuple[int, int]]:
    """Return width and height of every image as the first kind of XML files has them."""
    sizes = {}
    for name in names:
        known = [read[name].size for read in annotations.values() if read[name].size]
        if not known:
            findings["images without a size in any XML file, taken as 800 x 800"].append(name)
        sizes[name] = next(iter(known), None) or (DIOR.side, DIOR.side)
    return sizes


def horizontal_boxes(
    name: str, annotation: DiorAnnotation, size: tuple[int, int], findings: Findings
) -> list[tuple[int, str, Box]]:
    """Return an image's boxes for a COCO file: clipped to the image, without empty boxes."""
    boxes = []
    for number, (label, coordinates, _) in enumerate(annotation.objects, 1):
        left, top, right, bottom = coordinates
        box = clip_box((left, top, right, bottom), *size)
        if right <= left or bottom <= top:
            findings["horizontal boxes of no area, left out"].append(name)
        elif box[2] <= box[0] or box[3] <= box[1]:
            findings["horizontal boxes outside the image, left out"].append(name)
        else:
            if box != coordinates:
                findings["horizontal boxes clipped to the image"].append(name)
            boxes.append((OBJECT_LIMIT * int(name) + number, label, box))
    return boxes


def oriented_boxes(
    name: str, annotation: DiorAnnotation, size: tuple[int, int], findings: Findings
) -> list[LabelledBox]:
    """Return an image's boxes for a text file: whole boxes, without empty ones."""
    boxes = []
    for label, corners, difficulty in annotation.objects:
        box = LabelledBox(corners, label, difficulty)
        left, top, right, bottom = box.around
        if not box.has_area:
            findings["oriented boxes of no area, left out"].append(name)
        elif area_inside(corners, *size) <= LEAST_AREA:
            findings["oriented boxes outside the image, left out"].append(name)
        else:
            if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
                findings["oriented boxes that reach out of the image, kept whole"].append(name)
            boxes.append(box)
    return boxes


def look_closer(
    names: Sequence[str],
    annotations: Annotations,
    sizes: dict[str, tuple[int, int]],
    findings: Findings,
) -> None:
    """Note oddities of XML files that change no box."""
    for kind, read in annotations.items():
        for name in names:
            size, objects = read[name]
            if size and size != sizes[name]:
                findings[f"{KINDS[kind]} XML files with another size, not used"].append(name)
            if len(set(objects)) < len(objects):
                findings[f"images with {KINDS[kind]} boxes that come twice, kept"].append(name)


def write_folder(folder: Path, texts: dict[str, str]) -> None:
    """Write a folder of text files, with a progress bar, unless it already holds exactly these."""
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    if present == texts.keys() and all(
        (folder / name).read_bytes() == text.encode() for name, text in texts.items()
    ):
        return
    with replacing_folder(folder) as new:
        for name, text in progress(texts.items(), f"writing obb/{folder.name}", "file"):
            (new / name).write_bytes(text.encode())


def show_table(kind: str, parts: dict[str, list[str]], labels: dict[str, list[str]]) -> None:
    """Print classes x parts, and warn of classes without a box.

    Args:
        kind: Kind of the boxes, a key of ``KINDS``.
        parts: The images of each part.
        labels: The classes of each image's boxes.
    """
    counts = {
        part: Counter(label for name in names for label in labels[name])
        for part, names in parts.items()
    }
    images = [len(names) for names in parts.values()]
    empty = [sum(not labels[name] for name in names) for names in parts.values()]
    rows: list[list[str | int]] = [
        [label, *(counts[part][label] for part in PARTS)] for label in DIOR_CLASSES
    ]
    rows.append(["all boxes", *(sum(counts[part].values()) for part in PARTS)])
    rows += [["images", *images], ["images without boxes", *empty]]
    print(f"\n{table([f'{KINDS[kind]} boxes', *PARTS], rows)}")
    for part in DIOR.counts:
        absent = [label for label in DIOR_CLASSES if not counts[part][label]]
        if absent:
            warn(f"{part} has no {KINDS[kind]} box of {', '.join(absent)}")


def refuse_other_layout(data: Path, images: Sequence[Path]) -> None:
    """Refuse the layouts of DIOR's copies that differ in one folder or in the case of an ending.

    Raises:
        UserError: The layout is another; the message has the command that makes it the release's.
    """
    folders = dict.fromkeys(path.parent for path in images)
    single = data / "JPEGImages"
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing and single.is_dir():
        links = "; ".join(f"ln -s {single.name} {folder}" for folder in missing)
        raise UserError(
            f"{data} has one folder {single.name} instead of "
            f"{' and '.join(folder.name for folder in folders)}. Link it: {links}"
        )
    for folder in folders:
        wanted = {path.stem: path.name for path in images if path.parent == folder}
        present = set(os.listdir(folder)) if folder.is_dir() else set()
        other = [n for n in sorted(present) if wanted.get(Path(n).stem, n) not in present]
        if other:
            ending = Path(other[0]).suffix
            rename = f'for f in *{ending}; do mv "$f" "${{f%{ending}}}.jpg"; done'
            raise UserError(
                f"{folder} has {len(other):,} images that end with {ending} instead of .jpg, the "
                f"first being {other[0]}. Rename them: cd {folder} && {rename}"
            )


def convert(
    data: Path,
    look_at_images: bool = True,
    decode: bool = True,
    workers: int = 0,
    allow_incomplete: bool = False,
) -> None:
    """Check DIOR, write the annotation files and print their content.

    Args:
        data: Folder of the data set.
        look_at_images: Whether the images have to be there. Their own sizes are then used.
        decode: Whether every image is decoded.
        workers: Threads that decode; all cores by default.
        allow_incomplete: Whether lists of other lengths than the release's are accepted.

    Raises:
        UserError: A file is missing or cannot be read, or the data set is not complete.
    """
    splits = read_splits(data)
    names = sorted(itertools.chain.from_iterable(splits.values()), key=int)
    kinds = [kind for kind in KINDS if (data / "Annotations" / kind).is_dir()]
    if not kinds:
        raise UserError(
            f"{data / 'Annotations'} has neither of the folders {', '.join(KINDS)}. Unpack one of "
            "them there."
        )
    files = {
        name: Path(IMAGE_FOLDERS[split], f"{name}.jpg")
        for split, listed in splits.items()
        for name in listed
    }
    images = {name: data / files[name] for name in names}
    if look_at_images:
        refuse_other_layout(data, [*images.values()])
        refuse_missing(
            [*images.values()],
            "unpack all of DIOR's images, or convert without looking at them (--annotations-only)",
        )
    findings: Findings = defaultdict(list)
    annotations = {kind: read_annotations(data, kind, names) for kind in kinds}
    if look_at_images and decode:
        refuse_damaged([*images.values()], workers)
    sizes = read_sizes(images) if look_at_images else written_sizes(names, annotations, findings)
    look_closer(names, annotations, sizes, findings)
    counts = {split: len(listed) for split, listed in splits.items()}
    differences = describe_counts(counts, DIOR.counts)
    refuse_incomplete(data, DIOR.title, differences, allow_incomplete, findings=findings)

    for folder in (data / "coco", data / "obb"):
        remove_temporaries(folder)
    parts = {
        part: sorted((name for split in sources for name in splits[split]), key=int)
        for part, sources in PARTS.items()
    }
    tables: dict[str, dict[str, list[str]]] = {}
    if HORIZONTAL in annotations:
        boxes = {
            name: horizontal_boxes(name, annotations[HORIZONTAL][name], sizes[name], findings)
            for name in names
        }
        tables[HORIZONTAL] = {name: [box[1] for box in boxes[name]] for name in names}
        for part, listed in parts.items():
            content = [
                CocoImage(int(name), files[name].as_posix(), *sizes[name], boxes[name])
                for name in listed
            ]
            write_text(data / "coco" / f"{part}.json", coco_text(DIOR_CLASSES, content))
    if ORIENTED in annotations:
        labelled = {
            name: oriented_boxes(name, annotations[ORIENTED][name], sizes[name], findings)
            for name in names
        }
        tables[ORIENTED] = {name: [box.name for box in labelled[name]] for name in names}
        for part, listed in parts.items():
            texts = {f"{name}.txt": format_labels(labelled[name]) for name in listed}
            write_folder(data / "obb" / part, texts)

    for kind, labels in tables.items():
        show_table(kind, parts, labels)
    print(f"\n{findings_text(findings) or 'nothing odd was found'}")
    for kind, where in ((HORIZONTAL, "coco"), (ORIENTED, "obb")):
        if kind in annotations:
            print(f"wrote {data / where}/ for {', '.join(PARTS)}")
        else:
            warn(f"{data / where} is not written: there is no {data / 'Annotations' / kind}")
    print(next_command("configs/downstream/dior/faster-rcnn_r50_fpn_24e_dior.py", data, "dior"))


def run(args: argparse.Namespace) -> None:
    """Check DIOR and write its COCO and DOTA annotation files."""
    look_at_images, decode = not args.annotations_only, not args.no_decode
    with explained(args.data):
        convert(args.data, look_at_images, decode, args.workers, args.allow_incomplete)
