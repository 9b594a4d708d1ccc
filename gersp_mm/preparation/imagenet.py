"""Check ImageNet-1k, the natural images of GeRSP's pre-training."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from gersp_mm.datasets.known import IMAGENET
from gersp_mm.images.duplicates import second_copies
from gersp_mm.images.listing import find_classes, find_images, is_image_name
from gersp_mm.preparation.common import (
    SHOWN,
    decode_once,
    next_pretraining,
    refuse_incomplete,
)
from gersp_mm.utils.console import table
from gersp_mm.utils.errors import UserError, listed

CLASSES = IMAGENET.class_count
TRAIN, VAL = IMAGENET.counts.values()  # images
WNID = re.compile(r"n\d{8}")


def find_problems(train: Path, classes: dict[str, list[str]]) -> list[str]:
    """Return the differences between train/ and the complete data set, worst first."""
    problems = []
    archives = sorted(path.name for path in train.glob("*.tar"))
    if archives:
        problems.append(
            f"{len(archives)} archives are not unpacked ({listed(archives, SHOWN)}): see --help "
            "for how"
        )
    loose = sorted(
        path.name for path in train.iterdir() if is_image_name(path.name) and path.is_file()
    )
    if loose:
        problems.append(
            f"{len(loose):,} images lie in no class folder ({listed(loose, SHOWN)}): not read"
        )
    foreign = [name for name in classes if not WNID.fullmatch(name)]
    if foreign:
        problems.append(
            f"{len(foreign)} folders are not called as ImageNet's classes "
            f"({listed(foreign, SHOWN)}): each is counted as a class and shifts the labels after it"
        )
    empty = [name for name, images in classes.items() if not images]
    if empty:
        problems.append(f"{len(empty)} folders hold no image ({listed(empty, SHOWN)})")
    copies = second_copies(name for names in classes.values() for name in names)
    if copies:
        pair = " and ".join(copies[0])
        problems.append(f"{len(copies):,} images appear twice, in two formats ({pair})")
    images = sum(map(len, classes.values()))
    for found, official, what in ((len(classes), CLASSES, "classes"), (images, TRAIN, "images")):
        if found != official:
            kind = "missing" if found < official else "too many"
            problems.append(
                f"{found:,} {what} instead of {official:,}: {abs(official - found):,} {kind}"
            )
    return problems


def describe_val(data: Path, train: dict[str, list[str]]) -> tuple[list[str], str]:
    """Return the images of val/, relative to it, and a remark on their use."""
    val = data / "val"
    images = find_images(val, progress=True) if val.is_dir() else []
    if not images:
        return [], "not there; not needed for pre-training"
    folders = {name.split("/", 1)[0] for name in images if "/" in name}
    if folders == set(train):
        return images, "one folder per class"
    if folders & set(train):
        return images, f"{len(folders)} class folders, train has {len(train)}: labels would differ"
    return images, "flat, without labels; not needed for pre-training"


def run(args: argparse.Namespace) -> None:
    """Check and count the images of ImageNet."""
    data: Path = args.data
    train = data / "train"
    if not train.is_dir():
        raise UserError(
            f"there is no folder {train}: DATA holds train/ with one folder per class (in the "
            "tree of Kaggle it is ILSVRC/Data/CLS-LOC)"
        )
    classes = find_classes(train, progress=True)
    images = [name for names in classes.values() for name in names]
    if not images:
        raise UserError(
            f"{train} holds no class folder with images: {find_problems(train, classes)[0]}"
        )
    val, kind = describe_val(data, classes)
    sizes = [len(names) for names in classes.values()]
    a_class = f"{min(sizes):,} to {max(sizes):,}"
    rows = [["train", len(classes), CLASSES, len(images), TRAIN, a_class]]
    rows.append(["val", "", "", len(val), VAL, ""])
    header = ["part", "classes", "official", "images", "official", "images per class"]
    print(table(header, rows))
    print(f"val: {kind}")
    refuse_incomplete(data, "ImageNet-1k", find_problems(train, classes), args.allow_incomplete)
    if args.decode:
        unreadable = [
            f"{folder / name} cannot be read: {reason}"
            for folder, names in ((train, images), (data / "val", val))
            for name, reason in (decode_once(folder, names, args.workers) if names else {}).items()
        ]
        refuse_incomplete(data, "ImageNet-1k", unreadable, args.allow_incomplete)
    source = "train_dataloader.dataset.natural"
    options = [f"{source}.data_root={train}"]
    if len(classes) != CLASSES:
        options.append(f"model.natural_head.num_classes={len(classes)}")
    print(next_pretraining(train, "data/packed/imagenet", options))
