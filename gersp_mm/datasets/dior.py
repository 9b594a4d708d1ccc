"""DIOR and DIOR-R: classes, split lists and XML annotations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from gersp_mm.datasets.known import DIOR
from gersp_mm.images.listing import read_text
from gersp_mm.utils.errors import UserError

DIOR_CLASSES = DIOR.classes

HORIZONTAL = "Horizontal Bounding Boxes"
ORIENTED = "Oriented Bounding Boxes"
IMAGE_FOLDERS = {
    "train": "JPEGImages-trainval",
    "val": "JPEGImages-trainval",
    "test": "JPEGImages-test",
}

BOX_TAGS = {
    HORIZONTAL: ("bndbox", ("xmin", "ymin", "xmax", "ymax")),
    ORIENTED: (
        "robndbox",
        tuple(
            f"{axis}_{corner}"
            for corner in ("left_top", "right_top", "right_bottom", "left_bottom")
            for axis in "xy"
        ),
    ),
}


class DiorObject(NamedTuple):
    """An object of an annotation file."""

    name: str  # one of DIOR_CLASSES
    coordinates: tuple[float, ...]  # left top right bottom, or x1 y1 x2 y2 x3 y3 x4 y4
    difficulty: int


class DiorAnnotation(NamedTuple):
    """An annotation file."""

    size: tuple[int, int] | None  # width and height; None if the file lacks them
    objects: list[DiorObject]


def read_split(path: Path) -> list[str]:
    """Read a list of image names without file ending, one per line.

    Raises:
        UserError: The list does not exist, is not a text file or is empty, or a line is not a
            number or appears twice.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Unpack DIOR's ImageSets into {path.parents[2]}.")
    names: dict[int, str] = {}
    for number, line in enumerate(read_text(path)[0].splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        if not (name.isascii() and name.isdigit()):
            raise UserError(f"{path}, line {number}: {name!r} is not an image number such as 00001")
        if int(name) in names:
            raise UserError(f"{path}, line {number}: {name} appears twice. Remove one line.")
        names[int(name)] = name
    if not names:
        raise UserError(f"{path} is empty. Download it again.")
    return [names[identity] for identity in sorted(names)]


def read_annotation(path: Path, kind: str) -> DiorAnnotation:
    """Read an annotation file, with class names as DIOR_CLASSES spells them.

    Args:
        path: An XML file.
        kind: :data:`HORIZONTAL` or :data:`ORIENTED`.

    Raises:
        UserError: The file is not XML of this form, or has an unknown class.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not an XML file ({error}). Download it again.") from None
    objects = []
    box_tag, tags = BOX_TAGS[kind]
    for number, element in enumerate(root.iterfind("object"), 1):
        spelt = (element.findtext("name") or "").strip()
        name = spelt.lower()
        if name not in DIOR_CLASSES:
            raise UserError(
                f"{path}, object {number}: unknown class {spelt!r}. The known classes are "
                f"{', '.join(DIOR_CLASSES)}, in lower or upper case."
            )
        box = element.find(box_tag)
        try:
            coordinates = tuple(float(box.findtext(tag) or "") for tag in tags)  # type: ignore[union-attr]
            difficulty = int(element.findtext("difficult") or 0)
            if not all(map(math.isfinite, coordinates)):
                raise ValueError
        except (AttributeError, ValueError):
            raise UserError(
                f"{path}, object {number} ({name}): <{box_tag}> needs numbers in "
                f"{', '.join(tags)}, and <difficult> a whole number"
            ) from None
        objects.append(DiorObject(name, coordinates, difficulty))
    return DiorAnnotation(_size(root, path), objects)


def _size(root: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{side}") for side in ("width", "height")]
    if None in texts:
        return None
    try:
        width, height = (int(text or "") for text in texts)
    except ValueError:
        raise UserError(f"{path}: <size> has {texts}, not whole numbers") from None
    return (width, height) if width > 0 and height > 0 else None
