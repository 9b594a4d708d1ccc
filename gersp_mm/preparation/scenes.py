"""What the converters of scene classification, EuroSAT and RESISC45, share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from gersp_mm.datasets.known import KnownDataset
from gersp_mm.datasets.splits import Entry, Split
from gersp_mm.images.duplicates import check_parts, refuse_second_copies, same_files
from gersp_mm.images.listing import is_image_name, write_list
from gersp_mm.preparation.common import (
    SHOWN,
    folders_called,
    next_command,
    refuse_damaged,
    refuse_incomplete,
)
from gersp_mm.utils.console import table
from gersp_mm.utils.errors import UserError, listed


def prepare_scenes(args: argparse.Namespace, known: KnownDataset) -> None:
    """Check a data set of class folders, write the lists of its split, print counts and what next.

    Args:
        args: Arguments of the converter; ``data`` holds the class folders at any depth and gets
            ``splits/<name>/<part>.txt``.
        known: A data set with a named split.

    Raises:
        UserError: Images are missing, unknown, damaged or of another size, or appear twice.
    """
    data, split = args.data, known.split
    assert split is not None
    files = find_scenes(data, split.classes)
    refuse_second_copies(list(files), data)
    parts = split.cut(files)
    name = split.name_of(parts)
    if name != split.name:
        consequence = (
            f": the split is then named {name}, and results on it are not comparable with those on "
            f"{split.name}"
        )
        refuse_incomplete(
            data,
            f"data set of {split.name}",
            describe_difference(files, split),
            args.allow_incomplete,
            consequence,
        )
    if not args.no_decode:
        refuse_damaged(list(files.values()), size=(known.side, known.side))
        report_identical(parts, files)
        found = {p: [(str(files[e.path]), e.label) for e in listed] for p, listed in parts.items()}
        check_parts(found, data, refuse=name != split.name)  # the published ones share a few
    folder = data / "splits" / name
    for part, entries in parts.items():
        lines = [f"{files[e.path].relative_to(data).as_posix()} {e.label}" for e in entries]
        write_list(folder / f"{part}.txt", lines)
    print(part_table(parts, split.classes))
    print(f"split {name}, sha256 {split.digest(parts)}: wrote {folder}")
    options = [f"{p}_dataloader.dataset.ann_file=splits/{name}/{p}.txt" for p in parts]
    config = f"configs/downstream/{known.folder}/finetune_r50_{known.folder}.py"
    print(next_command(config, data, known.folder, *(options if name != split.name else [])))


def find_scenes(data: Path, classes: Sequence[str]) -> dict[str, Path]:
    """Return the image files of the class folders, by their path from the class name on.

    Raises:
        UserError: There are no class folders, or one of them or an image appears twice.
    """
    folders: dict[str, Path] = {}
    for folder in folders_called(classes, data):
        if folder.name in folders:
            raise UserError(
                f"the class folder {folder.name} appears twice, as {folders[folder.name]} and "
                f"{folder}. Keep one of them below {data}."
            )
        folders[folder.name] = folder
    if not folders:
        raise UserError(
            f"{data} holds no class folder ({', '.join(classes[:3])} … are looked for, at any "
            "depth). See --help for where to download the data set."
        )
    return {
        f"{name}/{file.name}": file
        for name, folder in sorted(folders.items())
        for file in sorted(folder.iterdir())
        if is_image_name(file.name)
    }


def describe_difference(files: Mapping[str, Path], split: Split) -> list[str]:
    """List the missing and the unknown images: counts for the affected classes, and some names."""
    expected = set(split.paths())
    missing, unknown = sorted(expected - set(files)), sorted(set(files) - expected)
    rows = []
    for name, size in split.sizes.items():
        counts = [sum(p.startswith(f"{name}/") for p in paths) for paths in (missing, unknown)]
        if any(counts):
            rows.append([name, size, size - counts[0] + counts[1], *counts])
    counted = table(["class", "expected", "found", "missing", "unknown"], rows)
    return [
        "\n  ".join(["images by class:", *counted.splitlines()]),
        *(f"{what}: {listed(paths, SHOWN)}" for what, paths in
          (("missing", missing), ("unknown", unknown)) if paths),
    ]  # fmt: skip


def report_identical(parts: Mapping[str, Sequence[Entry]], files: Mapping[str, Path]) -> None:
    """Print which files of equal content lie in two classes or two parts; nothing is changed."""
    placed = {str(files[e.path]): (part, e) for part, listed in parts.items() for e in listed}
    order = {path: number for number, path in enumerate(placed)}
    same = sorted(same_files(list(placed)), key=lambda group: order[group[0]])
    groups = [[placed[path] for path in group] for group in same]
    for what, kinds in (
        ("classes", lambda group: {entry.label for _, entry in group}),
        ("parts", lambda group: {part for part, _ in group}),
    ):
        found = [group for group in groups if len(kinds(group)) > 1]
        print(f"byte-identical images in two {what}: {len(found)}")
        for group in found[:SHOWN]:
            print("  " + " = ".join(f"{entry.path} ({part})" for part, entry in group))


def part_table(parts: Mapping[str, Sequence[Entry]], classes: Sequence[str]) -> str:
    """Return the table of counts, classes by parts."""
    counts = [[sum(e.label == i for e in p) for p in parts.values()] for i in range(len(classes))]
    rows = [[name, *row, sum(row)] for name, row in zip(classes, counts)]
    total = [sum(column) for column in zip(*counts)]
    return table(["class", *parts, "all"], [*rows, ["all", *total, sum(total)]])
