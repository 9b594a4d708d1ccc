"""Files for the test servers of DOTA and LoveDA: LoveDA's are written, both are checked."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from PIL import Image, UnidentifiedImageError

from gersp_mm.datasets.dota import DOTA_CLASSES
from gersp_mm.datasets.known import LOVEDA
from gersp_mm.images.decode import unlimited_image_size
from gersp_mm.images.listing import find_images
from gersp_mm.registry import METRICS
from gersp_mm.utils.console import progress
from gersp_mm.utils.errors import UserError
from gersp_mm.utils.files import replacing

LOVEDA_CLASSES = len(LOVEDA.classes)
LOVEDA_IMAGES = LOVEDA.counts["test"]
LOVEDA_SIZE = (LOVEDA.side, LOVEDA.side)
LOVEDA_ZIP = "LoveDA_submission.zip"
TILE = re.compile(r"__\d+(\.\d+)?__\d+___\d+$")  # appended by the tools that cut DOTA's images
SHOWN = 3  # problems of one kind that are printed in full


@METRICS.register_module()
class LoveDASubmission(BaseMetric):
    """Write the predictions in the format of LoveDA's test server, with labels 0 to 6 as predicted.

    mmseg's ``IoUMetric(output_dir=...)`` adds 1 if the data set has ``reduce_zero_label``, as
    LoveDA does; the server fails on the resulting label 7.

    The files are ``<id>.png`` for each image and ``LoveDA_submission.zip`` with all of them. An
    image that several processes predicted is written once.

    Args:
        output_dir: Folder of the files.
        collect_device: Device on which results are gathered, ``'cpu'`` or ``'gpu'``.

    Raises:
        UserError: A label above 6 was predicted, or two images have one name.
    """

    def __init__(self, output_dir: str, collect_device: str = "cpu") -> None:
        super().__init__(collect_device=collect_device)
        self.output_dir = Path(output_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Encode the label maps of a batch."""
        for sample in data_samples:
            labels = sample["pred_sem_seg"]["data"].squeeze().cpu().numpy()
            if labels.min() < 0 or labels.max() >= LOVEDA_CLASSES:
                raise UserError(
                    f"{sample['img_path']}: labels from {labels.min()} to {labels.max()} were "
                    f"predicted, but LoveDA's are 0 to {LOVEDA_CLASSES - 1}: is num_classes "
                    f"{LOVEDA_CLASSES}?"
                )
            png = io.BytesIO()
            Image.fromarray(labels.astype(np.uint8)).save(png, "PNG")
            self.results.append((Path(sample["img_path"]).stem, png.getvalue()))

    def compute_metrics(self, results: list[tuple[str, bytes]]) -> dict[str, float]:
        """Write all files, and return no metrics, because there are no labels."""
        double = [name for name, times in Counter(name for name, _ in results).items() if times > 1]
        if double:
            raise UserError(f"several images have the name {', '.join(double[:SHOWN])}.png")
        path = self.output_dir / LOVEDA_ZIP
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, png in sorted(results):
                archive.writestr(f"{name}.png", png)
                with replacing(self.output_dir / f"{name}.png") as single:
                    single.write_bytes(png)
        print_log(f"{len(results)} label maps are in {path}", "current")
        return {}


class Submission:
    """The files of a submission, written next to those of an older one until they are complete.

    Args:
        kind: ``'dota'`` or ``'loveda'``.
        folder: Folder of the files.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.partial = folder / ".Task1.partial"

    def prepare(self, evaluator: Any) -> None:
        """Set the evaluator's output folder.

        Raises:
            UserError: The folder holds other files.
        """
        if self.kind == "loveda":  # LoveDA's evaluator replaces each file atomically.
            evaluator.output_dir = str(self.folder)
            return
        target = self.folder / "Task1"
        if target.is_dir():
            foreign = [p.name for p in target.iterdir() if not p.name.startswith("Task1")]
            if foreign:
                raise UserError(f"{target} holds {foreign[0]} too: choose another --submission DIR")
        if is_main_process():
            if (self.partial / "old").is_dir() and not target.exists():
                os.replace(self.partial / "old", target)  # A run was killed in between.
            shutil.rmtree(self.partial, ignore_errors=True)
        evaluator.outfile_prefix = str(self.partial / "Task1")  # The host requires a new folder.

    def finish(self, dataset: Any) -> Path:
        """Put the new files into place, check them, and return the file to submit.

        Args:
            dataset: The data set that was tested.

        Raises:
            UserError: The files are not fit to submit.
        """
        path = self._replace()
        paths = [dataset.get_data_info(number)["img_path"] for number in range(len(dataset))]
        check_file(self.kind, path, image_sizes(paths, tiles=self.kind == "dota"))
        return path

    def _replace(self) -> Path:
        if self.kind == "loveda":
            return self.folder / LOVEDA_ZIP
        target, old = self.folder / "Task1", self.partial / "old"
        if target.exists():
            os.replace(target, old)
        os.replace(self.partial / "Task1", target)
        shutil.rmtree(self.partial)
        return target / "Task1.zip"


class Check(NamedTuple):
    """The problems and remarks found in a file for a test server."""

    problems: list[str]
    notes: list[str]  # remarks that need no fix


class _Problems:
    """Texts by kind; a few of each kind are kept, and all are counted."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._texts: dict[str, list[str]] = {}

    def add(self, kind: str, text: str) -> None:
        self._count[kind] += 1
        if self._count[kind] <= SHOWN:
            self._texts.setdefault(kind, []).append(text)

    def texts(self) -> list[str]:
        found = []
        for kind, texts in self._texts.items():
            found += texts
            if self._count[kind] > SHOWN:
                found.append(f"... and {self._count[kind] - SHOWN:,} more of this kind ({kind})")
        return found


def check_file(
    kind: str, path: str | Path, images: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Check a file for a test server, and print the remarks that need no fix.

    Args:
        kind: ``'dota'`` or ``'loveda'``.
        path: The zip archive.
        images: Width and height of the test images by name; None to skip the comparison.

    Raises:
        UserError: The file is not fit to submit; the message lists all problems.
    """
    check = check_dota(path, images) if kind == "dota" else check_loveda(path, images)
    for note in check.notes:
        print(f"note: {note}")
    if check.problems:
        raise UserError(f"{path} is not fit to submit:\n  " + "\n  ".join(check.problems))


def image_sizes(paths: Sequence[str | Path], tiles: bool) -> dict[str, tuple[int, int]]:
    """Return width and height of test images by the names that the servers use.

    Args:
        paths: Image files.
        tiles: Whether ``P0006__1024__0___0.png`` is a tile of ``P0006``.

    Raises:
        UserError: A file is not an image.
    """
    sizes = {}
    for path in map(Path, paths):
        try:
            with unlimited_image_size(), Image.open(path) as image:
                sizes[TILE.sub("", path.stem) if tiles else path.stem] = image.size
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}). Fetch it again.") from None
    return sizes


def images_below(folder: str | Path) -> list[Path]:
    """Return all image files below a folder.

    Raises:
        UserError: The folder holds no image.
    """
    found = [Path(folder, name) for name in find_images(folder)] if os.path.isdir(folder) else []
    if not found:
        raise UserError(f"--images {folder}: there is no image")
    return found


def check_dota(path: str | Path, images: Collection[str] | None = None) -> Check:
    """Check a zip archive for Task 1 (oriented boxes) of DOTA v1.0's test server.

    Args:
        path: The archive.
        images: Names of the test images; by default any name is accepted.

    Raises:
        UserError: There is no such archive.
    """
    problems, notes = _Problems(), []
    seen: set[str] = set()
    empty = []
    with _opened(path) as archive:
        names = _flat_names(archive, problems)
        wanted = [f"Task1_{name}.txt" for name in DOTA_CLASSES]
        for name in wanted:
            if name not in names:
                problems.add("missing file", f"{name} is missing")
        for name in names:
            if name not in wanted:
                problems.add("unknown file", f"{name} is none of the 15 files Task1_<class>.txt")
        for name in (name for name in wanted if name in names):
            with archive.open(name) as file:
                number = 0
                for number, line in enumerate(io.TextIOWrapper(file, "utf-8", "replace"), 1):
                    fields = line.split()
                    where = f"{name}, line {number}"
                    _check_box(fields, where, problems)
                    if fields:
                        _check_name(fields[0], where, images, problems)
                        seen.add(fields[0])
            if not number:
                empty.append(name)
    if empty:
        notes.append(f"no object was found of {', '.join(name[6:-4] for name in empty)}")
    if images is not None:
        without = sorted(set(images) - seen)
        if without:
            more = ", ..." if len(without) > SHOWN else ""
            notes.append(
                f"no object was found in {len(without):,} of {len(images):,} images "
                f"({', '.join(without[:SHOWN])}{more})"
            )
    if len(empty) == len(wanted):
        problems.add("no object", "there is no object in any file")
    return Check(problems.texts(), notes)


def _check_box(fields: list[str], where: str, problems: _Problems) -> None:
    if len(fields) != 10:
        text = f"{where}: {len(fields)} fields instead of image, score and 8 coordinates"
        problems.add("fields", text)
        return
    try:
        score, *coordinates = map(float, fields[1:])
    except ValueError as error:
        problems.add("no number", f"{where}: {error}")
        return
    if not all(map(math.isfinite, (score, *coordinates))):
        problems.add("not finite", f"{where}: a value is not finite")
    elif not 0 <= score <= 1:
        problems.add("score", f"{where}: the score {score} is not within 0 and 1")


def _check_name(name: str, where: str, images: Collection[str] | None, problems: _Problems) -> None:
    if TILE.search(name):
        problems.add(
            "tile",
            f"{where}: {name} is the name of a tile. The boxes of tiles have to be merged to whole "
            "images (DOTAMetric with merge_patches=True, as gersp test --submission does); the "
            "server counts these as wrong",
        )
    elif images is not None and name not in images:
        problems.add("unknown image", f"{where}: {name} is none of the images")


def check_loveda(path: str | Path, images: Mapping[str, tuple[int, int]] | None = None) -> Check:
    """Check a zip archive for LoveDA's semantic segmentation server.

    Args:
        path: The archive.
        images: Width and height of the test images by name; by default any
            1,796 names and 1024 x 1024 pixels.

    Raises:
        UserError: There is no such archive.
    """
    problems, notes = _Problems(), []
    with _opened(path) as archive:
        names = _flat_names(archive, problems)
        ids = {}
        for name in names:
            if name.endswith(".png"):
                ids[name[:-4]] = name
            else:
                problems.add("unknown file", f"{name} is no <id>.png")
        if images is None and len(ids) != LOVEDA_IMAGES:
            problems.add(
                "number", f"there are {len(ids):,} label maps, LoveDA has {LOVEDA_IMAGES:,} images"
            )
        for name in sorted(set(images or ()) - set(ids)):
            problems.add("missing file", f"{name}.png is missing")
        for name, file in progress(ids.items(), "checking", "img"):
            if images is not None and name not in images:
                problems.add("unknown image", f"{file}: {name} is none of the images")
                continue
            size = (images or {}).get(name, LOVEDA_SIZE)
            _check_label_map(archive.read(file), file, size, problems)
    if images and (len(images) != LOVEDA_IMAGES or set(images.values()) != {LOVEDA_SIZE}):
        notes.append(
            f"the {len(images):,} images are not LoveDA's {LOVEDA_IMAGES:,} test images of "
            f"{LOVEDA_SIZE[0]} x {LOVEDA_SIZE[1]} pixels, which the server expects"
        )
    return Check(problems.texts(), notes)


def _check_label_map(content: bytes, name: str, size: tuple[int, int], problems: _Problems) -> None:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.mode != "L":
                problems.add(
                    "mode", f"{name}: of PIL's mode {image.mode}, not one channel of 8 bit (L)"
                )
                return
            if image.size != size:
                found, wanted = (" x ".join(map(str, s)) for s in (image.size, size))
                problems.add("size", f"{name}: {found} pixels instead of {wanted}")
            present = [value for value, count in enumerate(image.histogram()) if count]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        problems.add("damaged", f"{name}: cannot be read as PNG ({error})")
        return
    wrong = [value for value in present if value >= LOVEDA_CLASSES]
    if wrong == [LOVEDA_CLASSES]:
        problems.add(
            "label 7",
            f"{name}: holds the label 7, which breaks the server. Labels are 0 to 6; 7 comes from "
            "adding 1 to all, as mmseg's IoUMetric(output_dir=...) does with reduce_zero_label: "
            "write with gersp_mm.LoveDASubmission",
        )
    elif wrong:
        problems.add("labels", f"{name}: holds {', '.join(map(str, wrong[:8]))}, not only 0 to 6")


@contextmanager
def _opened(path: str | Path) -> Iterator[zipfile.ZipFile]:
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        what = "is a folder" if Path(path).is_dir() else "is not there, or no zip archive"
        raise UserError(f"{path} {what}: name the zip archive that is to be submitted")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error}): write it again") from None


def _flat_names(archive: zipfile.ZipFile, problems: _Problems) -> list[str]:
    names = []
    for name in (info.filename for info in archive.infolist()):
        if "/" in name:
            problems.add("folder", f"{name}: files have to lie flat in the archive, in no folder")
        elif name in names:
            problems.add("twice", f"{name} appears twice in the archive")
        else:
            names.append(name)
    return names
