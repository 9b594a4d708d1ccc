"""Check LoveDA, and bring Urban and Rural together for mmsegmentation."""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gersp_mm.datasets.known import LOVEDA
from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.images.duplicates import refuse_second_copies
from gersp_mm.images.listing import is_passed_over
from gersp_mm.preparation.common import (
    SHOWN,
    describe_counts,
    first_lines,
    folders_called,
    next_command,
    refuse_incomplete,
    unpack_into,
)
from gersp_mm.utils.console import progress, table
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import TEMPORARY_SUFFIX, remove_temporaries, replacing

OFFICIAL = {part.title(): count for part, count in LOVEDA.counts.items()}  # images
AREAS = ("Rural", "Urban")
LABELS = ("no data", *LOVEDA.classes)
SIDE = LOVEDA.side


class Pair(NamedTuple):
    """An image and its mask, which test images do not have."""

    area: str
    image: Path
    mask: Path | None


# -------------------------------------------------------------------------------- what there is


def find_part(data: Path, part: str) -> list[Pair]:
    """Return the images of a part with their masks; none if it has no folder.

    Raises:
        UserError: An image or mask stands alone, or a folder appears twice.
    """
    pairs: list[Pair] = []
    found: dict[str, Path] = {}
    for folder in folders_called(["images_png"], data):
        area = folder.parent.name
        if area not in AREAS or folder.parent.parent.name != part:
            continue
        if area in found:
            raise UserError(f"{part}/{area} appears twice, as {found[area]} and {folder}")
        found[area] = folder
        masks = folder.with_name("masks_png")
        images = _pictures(folder)
        if part == "Test":
            pairs += [Pair(area, path, None) for path in images.values()]
            continue
        labelled = _pictures(masks) if masks.is_dir() else {}
        alone = [images[name] for name in images if name not in labelled]
        alone += [labelled[name] for name in labelled if name not in images]
        if alone:
            raise UserError(
                f"{len(alone)} files of {folder.parent} have no counterpart in images_png or "
                f"masks_png, such as {listed(alone, SHOWN)}: fetch {part}.zip again"
            )
        pairs += [Pair(area, images[name], labelled[name]) for name in images]
    return pairs


def _pictures(folder: Path) -> dict[str, Path]:
    """Return the PNG files of a folder by their names with ``.png`` in small letters."""
    files = [file for file in sorted(folder.iterdir()) if not is_passed_over(file.name)]
    found = [file for file in files if file.suffix.lower() == ".png"]
    if files and not found:
        raise UserError(
            f"{folder} holds no PNG files but {files[0].name}. Fetch the official archives, which "
            "have PNG files: masks do not survive other formats."
        )
    refuse_second_copies([file.name for file in found], folder)
    return {f"{file.stem}.png": file for file in found}


def name_pairs(part: str, pairs: Sequence[Pair]) -> dict[str, Pair]:
    """Give each image its file name in the common folder.

    Where Rural and Urban have different images of the same number, both get the area in front.

    Raises:
        UserError: Test has such images; the test server identifies them by their names.
    """
    by_number: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_number.setdefault(f"{pair.image.stem}.png", []).append(pair)
    named: dict[str, Pair] = {}
    for number, same in by_number.items():
        if len(same) == 1 or _equal(*same):
            named[number] = same[0]
        elif part == "Test":
            raise UserError(
                f"{same[0].image} and {same[1].image} are different images of one number, but the "
                "test server tells images apart only by their number. Fetch Test.zip again."
            )
        else:
            named.update((f"{pair.area.lower()}_{number}", pair) for pair in same)
    return named


def _equal(one: Pair, other: Pair) -> bool:
    files = [(one.image, other.image)]
    if one.mask and other.mask:
        files.append((one.mask, other.mask))
    return all(filecmp.cmp(a, b, shallow=False) for a, b in files)


# --------------------------------------------------------------------------------------- checking


def count_labels(pair: Pair) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a pair; return the pixels of each label (none without a mask) and the size.

    Raises:
        ValueError: The pair cannot be used. The message names the file.
    """
    try:
        size = load_rgb(str(pair.image)).size
    except BadImageError as error:
        raise ValueError(f"{pair.image}: {error}") from error
    if pair.mask is None:
        return np.zeros(len(LABELS), np.int64), size
    try:
        with Image.open(pair.mask) as mask:
            mode, labels = mask.mode, np.asarray(mask)
    except Exception as error:  # Decoders raise nearly every type on damaged files.
        raise ValueError(f"{pair.mask}: {type(error).__name__}: {error}") from error
    if mode not in ("L", "P"):
        raise ValueError(
            f"{pair.mask}: mode {mode}, but label numbers of one channel with 8 bit are needed "
            "(masks in colours are pictures for the eye; the masks of EarthVQA have three equal "
            "channels)"
        )
    if labels.shape[::-1] != size:
        width, height = labels.shape[::-1]
        raise ValueError(f"{pair.mask}: {width}x{height}, its image is {size[0]}x{size[1]}")
    if labels.max() >= len(LABELS):
        raise ValueError(
            f"{pair.mask}: label {labels.max()}, but LoveDA has 0 to {len(LABELS) - 1} (EarthVQA, "
            "its successor, has 8: playground)"
        )
    return np.bincount(labels.ravel(), minlength=len(LABELS)), size


def check_part(part: str, pairs: Sequence[Pair]) -> np.ndarray:
    """Decode every pair of a part, with a progress bar; return the pixels of each label.

    Raises:
        UserError: Some pairs cannot be used; the message names them.
    """
    pixels = np.zeros(len(LABELS), np.int64)
    problems: list[str] = []
    other_sizes: list[Path] = []

    def attempt(pair: Pair) -> tuple[np.ndarray, tuple[int, int]] | str:
        try:
            return count_labels(pair)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = progress(pool.map(attempt, pairs), f"checking {part}", "img", len(pairs))
        for pair, result in zip(pairs, results):
            if isinstance(result, str):
                problems.append(result)
                continue
            pixels += result[0]
            if result[1] != (SIDE, SIDE):
                other_sizes.append(pair.image)
    if problems:
        raise UserError(
            f"{len(problems)} of {len(pairs)} pairs of {part} are unusable:{first_lines(problems)}"
        )
    if other_sizes:
        some = listed(other_sizes, SHOWN)
        print(f"WARNING: {len(other_sizes)} images are not {SIDE}x{SIDE}: {some}")
    if pixels.any():
        absent = [
            f"{label} {LABELS[label]}" for label in range(1, len(LABELS)) if not pixels[label]
        ]
        if absent:
            shifted = pixels[0] and not pixels[-1]
            print(
                f"WARNING: no mask of {part} has {', '.join(absent)}"
                + (
                    ": were the labels shifted to 0 to 6, as for the test server?"
                    if shifted
                    else ""
                )
            )
    return pixels


# ---------------------------------------------------------------------------------------- linking


def place(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a copy where that is not possible."""
    source = source.resolve()
    if target.exists() and filecmp.cmp(
        source, target
    ):  # Equal by file, by size and time, or by content.
        return
    temporary = target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        with replacing(target) as copy:
            shutil.copy2(source, copy)


def place_part(data: Path, part: str, named: dict[str, Pair]) -> None:
    """Fill ``img_dir`` and ``ann_dir`` of a part.

    Raises:
        UserError: The folders hold files that do not belong to the part.
    """
    folders = [data / kind / part.lower() for kind in ("img_dir", "ann_dir")]
    for folder in folders[: 1 if part == "Test" else 2]:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
        others = [file for file in sorted(folder.iterdir()) if file.name not in named]
        if others:
            raise UserError(
                f"{folder} holds files that {part} does not have: {listed(others, SHOWN)}. Remove "
                "img_dir and ann_dir and run the same command again."
            )
    for name, pair in progress(named.items(), f"linking {part}", "img"):
        place(pair.image, folders[0] / name)
        if pair.mask is not None:
            place(pair.mask, folders[1] / name)


# ----------------------------------------------------------------------------------------- report


def image_table(parts: dict[str, dict[str, Pair]]) -> str:
    """Return the counts of images, parts by areas."""
    rows = []
    for part, official in OFFICIAL.items():
        areas = [pair.area for pair in parts[part].values()]
        rows.append([part.lower(), *map(areas.count, AREAS), len(areas), official])
    return table(["part", *(area.lower() for area in AREAS), "images", "official"], rows)


def pixel_table(pixels: dict[str, np.ndarray]) -> str:
    """Return the pixels of each label in the parts that have masks, with their share."""
    header, columns = ["label"], []
    for part, counts in pixels.items():
        header += [f"{part.lower()} pixels", "share"]
        columns.append(counts.tolist())
        columns.append([f"{100 * n / max(1, counts.sum()):.2f} %" for n in counts])
    names = [f"{number} {name}" for number, name in enumerate(LABELS)]
    return table(header, zip(names, *columns))


def run(args: argparse.Namespace) -> None:
    """Check LoveDA and lay it out as mmsegmentation reads it."""
    data = args.data
    unpack_into(data, args.archives)
    parts = {part: name_pairs(part, find_part(data, part)) for part in OFFICIAL}
    if not any(parts.values()):
        raise UserError(
            f"{data} holds no Train/Rural/images_png, Train/Urban/images_png …. Give the zip files "
            "with --archives, or see --help for where to download them."
        )
    pixels = {
        part: check_part(part, list(named.values())) for part, named in parts.items() if named
    }
    pixels.pop("Test", None)
    counts = {part: len(named) for part, named in parts.items() if named or part != "Test"}
    refuse_incomplete(data, "LoveDA", describe_counts(counts, OFFICIAL), args.allow_incomplete)
    for part, named in parts.items():
        if named:
            place_part(data, part, named)
    print(image_table(parts))
    if pixels:
        print(pixel_table(pixels))
    print(f"wrote {data / 'img_dir'} and {data / 'ann_dir'}")
    config = "configs/downstream/loveda/deeplabv3plus_r50-d8_80k_loveda.py"
    print(next_command(config, data, "loveda"))
