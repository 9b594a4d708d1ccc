"""Labelled images in training, validation and test parts, of known or own data sets."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.logging import print_log

from gersp_mm.datasets.known import SCENES
from gersp_mm.datasets.splits import Split
from gersp_mm.evaluation.features import read_source
from gersp_mm.images.duplicates import Entry, check_parts, refuse_second_copies
from gersp_mm.images.listing import find_images
from gersp_mm.results.protocol import ImageInput
from gersp_mm.results.row import SplitRef
from gersp_mm.utils.errors import UserError, listed


@dataclass(frozen=True)
class Data:
    """Labelled images of a data set, split into parts.

    Attributes:
        name: Title of the data set in the rows.
        split: The split; lists of other images give another split.
        parts: Images of train, test and, in some data sets, val.
        size: Side of the square crop in pixels.
        resize: Length in pixels to which the shorter side is resized first.
    """

    name: str
    split: SplitRef
    parts: Mapping[str, Sequence[Entry]]
    size: int
    resize: int

    @property
    def image(self) -> ImageInput:
        """The sizes as a field of protocols."""
        resize = None if self.resize == self.size else self.resize
        return ImageInput(size=self.size, resize=resize)


def known_data(name: str) -> Data:
    """Return a data set of :data:`SCENES` below ``GERSP_DATA``, split by lists or by shares.

    Raises:
        UserError: The data set does not exist, or its folders or images are not as expected.
    """
    known = SCENES[name]
    root = known.root()
    if not root.is_dir():
        raise UserError(
            f"data: {name} is expected in {root}, which does not exist. Put the data set "
            "there, or set GERSP_DATA to the folder that holds it."
        )
    if known.split is not None:
        folder = root / "splits" / known.split.name
        if not folder.is_dir():
            raise UserError(f"data: there is no {folder}. Run gersp prepare {name} {root}.")
        parts = {part: read_source(folder / f"{part}.txt", root) for part in known.shares}
        check_parts(parts, f"data: {root}")
        split_ref = SplitRef(name=known.split.name)
        return Data(known.title, split_ref, parts, known.crop, known.resize)
    paths = find_images(root)
    images = {"/".join(path.split("/")[-2:]): path for path in paths}
    if len(images) < len(paths):
        raise UserError(
            f"data: {root} holds {len(paths) - len(images)} images twice, in folders of the "
            "same name. Keep one of the two folders."
        )
    refuse_second_copies(paths, f"data: {root}")
    sizes: dict[str, int] = {}
    for path in sorted(images):
        sizes[path.split("/")[0]] = sizes.get(path.split("/")[0], 0) + 1
    if len(sizes) != known.class_count:
        raise UserError(
            f"data: {known.title} has {known.class_count} class folders, {root} has {len(sizes)}: "
            f"{listed(sizes)}"
        )
    if len(images) != known.images:
        print_log(
            f"data: {known.title} has {known.images:,} images, {root} has {len(images):,}: results "
            "are not comparable with results on the whole data set.",
            logger="current",
            level=logging.WARNING,
        )
    split = Split(f"{name}-gersp-1", sizes, "", known.shares, "")
    cut = split.cut(images)
    parts = {p: [(str(root / images[e.path]), e.label) for e in cut[p]] for p in cut}
    check_parts(parts, f"data: {root}")
    return Data(known.title, described(split.name, parts), parts, known.crop, known.resize)


def described(name: str, parts: Mapping[str, Sequence[Entry]]) -> SplitRef:
    """Return a split with the hash and the sizes of its lists."""
    sizes = {part: len(entries) for part, entries in parts.items()}
    return SplitRef(name=name, sha256=lists_sha256(parts)[:8], sizes=sizes)


def lists_sha256(parts: Mapping[str, Sequence[Entry]]) -> str:
    """Hash class, file name, label and bytes of every image."""
    lines = (
        f"{part} {'/'.join(Path(path).parts[-2:])} {label} {_bytes(path)}\n"
        for part, entries in parts.items()
        for path, label in entries
    )
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _bytes(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        raise UserError(f"{path} is listed, but there is no such file") from None
