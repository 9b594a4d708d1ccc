"""Shrink an image data set once, and pack its million files into one LMDB database."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import os.path as osp
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from gersp_mm.images.bands import TIFF_STARTS, is_raster
from gersp_mm.images.decode import BadImageError, load_rgb
from gersp_mm.images.listing import (
    IMAGE_EXTENSIONS,
    ImageList,
    find_classes,
    find_images,
    refuse_unlistable,
    write_list,
)
from gersp_mm.images.packed import DATABASE, LABELLED_LISTING, LISTING, import_lmdb
from gersp_mm.images.scaling import WHOLE_SIDE, check_raster
from gersp_mm.preparation.common import complete_lines, explained, write_reasons
from gersp_mm.utils.called import as_called
from gersp_mm.utils.console import progress, table
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import remove_temporaries, replacing

FOLDER = "images"
PROGRESS = "progress.jsonl"
JPEG_LIMIT = 65500  # Pixels per side. Longer images are stored unchanged.
COMMIT_IMAGES, COMMIT_BYTES = 1000, 64 * 2**20  # An interruption loses at most this much.
LONGEST_KEY = 511  # bytes; LMDB's limit in all builds
MAP_SIZE = 2**42  # Size limit in bytes; only address space is reserved.
TILER = "gersp prepare tiles"
GO_ON = "and run the same command again, it resumes where it stopped"


class Packed(NamedTuple):
    """Result of packing one image."""

    name: str
    kind: str  # "shrunk", "copied", "raster", "bad", or "failed": could not be written
    before: int = 0  # bytes
    after: int = 0
    reason: str = ""
    content: bytes = b""


# -------------------------------------------------------------------------------- what there is


def find_names(source: Path, listing: Path | None) -> tuple[list[str], dict[str, int]]:
    """List the images in the order of ``images.txt``, and the labels of those that have one.

    Raises:
        UserError: Nothing to list, or a name that cannot be used.
    """
    if not source.is_dir():
        raise UserError(f"{source} is no folder: SRC is the folder of the images")
    labels: dict[str, int] = {}
    if listing is not None:
        names, labels = _read_list(source, listing)
    else:
        names = find_images(source)
        if all("/" in name for name in names):
            classes = find_classes(source).values()
            labels = {name: label for label, paths in enumerate(classes) for name in paths}
    if not names:
        looked_for = "one path per line" if listing else " ".join(IMAGE_EXTENSIONS)
        raise UserError(f"{listing or source} holds no image (looked for: {looked_for})")
    return names, labels


def _read_list(source: Path, listing: Path) -> tuple[list[str], dict[str, int]]:
    if not listing.is_file():
        raise UserError(
            f"{listing} is no file. Give --list a text file with one image path per line."
        )
    images = ImageList.read(listing, source, labelled=None)
    names: dict[str, int] = {}
    for path, label in zip(images.paths, images.labels or [-1] * len(images.paths)):
        name = osp.relpath(osp.join(source, path), source).replace(os.sep, "/")
        if name.startswith("../"):
            raise UserError(
                f"{listing}: {path} is outside of {source}. Choose an SRC that contains it."
            )
        if name in names:
            raise UserError(
                f"{listing} names {name} twice, and both would have one name in DST. Remove one."
            )
        names[name] = label
    return list(names), {} if images.labels is None else names


def check_names(names: Sequence[str], longest: int | None) -> None:
    """Refuse names that a list or a database cannot hold, before any work is done.

    Raises:
        UserError: A name or a setting cannot be used, or a file cannot be written.
    """
    for name in names:
        refuse_unlistable(name)
        if longest is not None and len(name.encode()) > longest:
            raise UserError(
                f"{name} is longer than the {longest} bytes that LMDB allows below SRC. Rename "
                "the file, or use --to folder."
            )


# ------------------------------------------------------------------------- the work on one image


@dataclass
class Packer(Dataset):
    """A function from an image's name to its stored bytes, for the workers; see :func:`pack`."""

    source: Path
    target: Path | None  # None returns the content
    shorter_side: int
    quality: int

    def __getitem__(self, name: str) -> Packed:
        path = self.source / name
        try:
            original = path.read_bytes()
            if is_raster(io.BytesIO(original)):  # Its values and bands are kept.
                info = check_raster(original)
                content, kind = original, "raster"
                large = max(info.width, info.height) > WHOLE_SIDE
                reason = f"{info.width} x {info.height} px" if large else ""
            else:
                image = load_rgb(str(path))
                if self.shorter_side and original.startswith(TIFF_STARTS):
                    refuse_scene(image)
                content = self.shrink(image) or original
                kind, reason = "copied" if content is original else "shrunk", ""
        except OSError as error:  # BadImageError is an OSError.
            return Packed(name, "bad", reason=" ".join(str(error).split()))
        packed = Packed(name, kind, len(original), len(content), reason)
        if self.target is None:
            return packed._replace(content=content)
        try:
            with replacing(self.target / name) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            return Packed(name, "failed", reason=str(error))
        return packed

    def shrink(self, image: Image.Image) -> bytes | None:
        """Return the reduced image as JPEG, or None if it is stored unchanged."""
        scale = self.shorter_side / min(image.size)
        size = [max(self.shorter_side, round(scale * length)) for length in image.size]
        if not 0 < scale < 1 or max(size) > JPEG_LIMIT:
            return None
        buffer = io.BytesIO()
        image = image.resize(size, Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=self.quality, subsampling=0)  # Full colour resolution.
        return buffer.getvalue()


def refuse_scene(image: Image.Image) -> None:
    """Raise a :class:`BadImageError` for a TIFF so large that shrinking makes a thumbnail of it."""
    if max(image.size) > WHOLE_SIDE:
        raise BadImageError(
            f"a scene of {image.width} x {image.height} px would become a thumbnail. Cut it with "
            f"{as_called(TILER)}, or use --shorter-side 0."
        )


def run_workers(packer: Dataset, names: Sequence[str], workers: int) -> Iterator[Any]:
    """Start the workers; their results come in the order of the names, few at a time.

    Raises:
        UserError: A worker process died.
    """
    # The dataset is indexed by names, so the sampler yields the names themselves.
    loader = DataLoader(packer, batch_size=None, sampler=names, num_workers=workers)
    results = iter(loader)

    def guarded() -> Iterator[Packed]:
        try:
            yield from results
        except RuntimeError as error:
            if not re.search("exited unexpectedly|killed by signal", str(error)):
                raise
            raise UserError(
                f"a worker process was ended from outside, most likely for lack of memory: use "
                f"fewer --workers {GO_ON}"
            ) from error

    return guarded()


# ---------------------------------------------------------------------------------- what is done


def open_record(path: Path, settings: dict[str, Any]) -> list[Any]:
    """Read what an earlier run has noted; start the file if there is none.

    Args:
        path: A file with a line of JSON for each note, below one with the settings.
        settings: Settings of the folder.

    Raises:
        UserError: The folder was made with other settings, or not by this tool.
    """
    lines = complete_lines(path) if path.exists() else []
    if not lines:
        own = f".{path.name}."  # Prefix of the files that `replacing` leaves when it is killed.
        if path.parent.exists() and any(
            not file.name.startswith(own) for file in path.parent.iterdir() if file != path
        ):
            raise UserError(
                f"{path.parent} is not empty and was not made by this tool. Choose another DST."
            )
        lines = [json.dumps(settings).encode()]
        with replacing(path) as temporary:
            temporary.write_bytes(lines[0] + b"\n")
    first, *noted = lines
    known = json.loads(first)
    if known != settings:
        differing = [k for k in settings if known.get(k) != settings[k]]
        changes = ", ".join(f"{k} {known.get(k)!r} instead of {settings[k]!r}" for k in differing)
        raise UserError(
            f"{path.parent} was made with other settings ({changes}). Use the same settings, "
            "choose another DST, or remove the folder."
        )
    return list(map(json.loads, noted))


@contextlib.contextmanager
def opened_database(path: Path, lmdb: Any, done: int) -> Iterator[Any]:
    """Open the database for writing; None without ``lmdb``.

    Raises:
        UserError: It holds fewer than ``done`` images.
    """
    if lmdb is None:
        yield None
        return
    with lmdb.open(str(path), map_size=MAP_SIZE) as database:
        if database.stat()["entries"] < done:
            raise UserError(
                f"{path} holds fewer images than {PROGRESS} says, because it was damaged or "
                f"removed. Remove {path.parent} and start again."
            )
        yield database


def in_batches(results: Iterator[Packed]) -> Iterator[list[Packed]]:
    """Group the images that are made permanent at once."""
    batch: list[Packed] = []
    size = 0
    for packed in results:
        if packed.kind == "failed":
            raise OSError(packed.reason)
        batch.append(packed)
        size += len(packed.content)
        if len(batch) >= COMMIT_IMAGES or size >= COMMIT_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def store(batch: Sequence[Packed], database: Any, progress: Any) -> None:
    """Make results permanent: first the images, then the record that they are done."""
    if database is not None:
        with database.begin(write=True) as transaction:
            for packed in batch:
                if packed.content:
                    transaction.put(packed.name.encode(), packed.content)
    for packed in batch:
        progress.write(json.dumps(packed[:-1]).encode() + b"\n")
    progress.flush()
    os.fsync(progress.fileno())


def write_lists(
    target: Path, packed: dict[str, Packed], names: Sequence[str], labels: dict[str, int]
) -> None:
    """Write the lists that the datasets read, and the list of bad images.

    Raises:
        UserError: No image can be read; the other lists are not written.
    """
    folder = DATABASE if (target / DATABASE).exists() else FOLDER
    bad = {name: packed[name].reason for name in names if packed[name].kind == "bad"}
    write_reasons(target / "bad_images.txt", bad)
    if len(bad) == len(names):
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"None of the {len(names):,} images can be read, {name} for: {reason}. Repair them "
            f"{GO_ON}; no list is written."
        )
    if labels:
        good = [name for name in labels if name not in bad]
        paths = [f"{folder}/{name}" for name in good]
        ImageList(paths, [labels[name] for name in good]).write(target / LABELLED_LISTING)
    listed = [f"{folder}/{name}" for name in names if name not in bad]
    write_list(target / LISTING, listed)  # Written last, as a sign that all is complete.


def count_table(packed: Sequence[Packed]) -> str:
    """Return a table of the images and their sizes before and after, by the kind of result."""
    lines: list[Sequence[object]] = []
    for kind in ("shrunk", "copied", "raster", "bad", "all"):
        rows = [row for row in packed if kind in (row.kind, "all")]
        sizes = (sum(float(row[column]) for row in rows) / 1e6 for column in (2, 3))
        lines.append((kind, len(rows), *(f"{size:,.1f}" for size in sizes)))
    return table(["", "images", "MB before", "MB after"], lines)


def pack(
    source: Path,
    target: Path,
    shorter_side: int = 256,
    quality: int = 95,
    to_lmdb: bool = False,
    listing: Path | None = None,
    workers: int = 0,
) -> dict[str, Packed]:
    """Pack a data set, or resume it.

    Args:
        source: Folder of the images.
        target: Folder to make.
        shorter_side: Length of the shorter side in pixels; 0 never shrinks.
        quality: Quality of JPEG, 1 to 100.
        to_lmdb: Whether to write one database instead of a folder.
        listing: List of the images, with or without labels.
        workers: Number of worker processes; 0 works in this process.

    Returns:
        The result of every image, by name, without content.

    Raises:
        UserError: A name or a setting cannot be used, or a file cannot be written.
    """
    source, target = source.resolve(), target.resolve()
    lmdb = import_lmdb() if to_lmdb else None
    if target.is_relative_to(source):
        raise UserError(f"{target} is inside {source}. Choose a DST outside of SRC.")
    if any(part.endswith(".lmdb") for part in target.parts):
        raise UserError(f"DST is a folder that gets {DATABASE}: leave the ending .lmdb away")
    names, labels = find_names(source, listing)
    check_names(names, LONGEST_KEY if to_lmdb else None)
    settings = dict(
        source=str(source), shorter_side=shorter_side, quality=quality,
        to="lmdb" if to_lmdb else "folder",
    )  # fmt: skip
    with explained(target, GO_ON, *([lmdb.Error] if lmdb else [])):
        noted = open_record(target / PROGRESS, settings)
        packed = {row.name: row for row in (Packed(*values) for values in noted)}
        done = {name for name, row in packed.items() if row.kind != "bad"}
        pending = [name for name in names if name not in done]
        remove_temporaries(target)
        if not to_lmdb:
            for folder in {osp.dirname(name) for name in pending}:
                remove_temporaries(target / FOLDER / folder)
        packer = Packer(source, None if to_lmdb else target / FOLDER, shorter_side, quality)
        results = run_workers(packer, pending, min(workers, len(pending)))
        with (
            opened_database(target / DATABASE, lmdb, len(done)) as database,
            open(target / PROGRESS, "ab") as record,
        ):
            shown = progress(results, "packing", "img", len(names), len(names) - len(pending))
            for batch in in_batches(shown):
                store(batch, database, record)
                packed.update((row.name, row._replace(content=b"")) for row in batch)
        write_lists(target, packed, names, labels)
    return {name: packed[name] for name in names}


def run(args: argparse.Namespace) -> None:
    """Shrink the images of a folder and write them to a folder or one database."""
    if args.shorter_side < 0 or not 1 <= args.quality <= 100:
        raise UserError(
            f"--shorter-side {args.shorter_side} or --quality {args.quality} is out of range. Use "
            "a side of at least 0 and a quality from 1 to 100."
        )
    packed = pack(
        args.source, args.target, args.shorter_side, args.quality, args.to == "lmdb", args.list,
        args.workers,
    )  # fmt: skip
    print(count_table(list(packed.values())))
    if rasters := sum(row.kind == "raster" for row in packed.values()):
        print(
            f"{rasters} rasters (more than 8 bits, or bands of their own) were stored as they are: "
            "their values and bands are chosen at training"
        )
    if large := [row for row in packed.values() if row.kind == "raster" and row.reason]:
        print(
            f"{len(large)} of them have more than {WHOLE_SIDE} px a side ({large[0].name}: "
            f"{large[0].reason}) and would be decoded whole for each sample: cut them by "
            f"{as_called(TILER)}, or read windows of them by gersp_mm.Scenes"
        )
    print(f"wrote {args.target / LISTING}")
