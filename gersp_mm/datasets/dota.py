"""DOTA: classes, label text, and boxes in COCO form."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gersp_mm.datasets.known import DOTA
from gersp_mm.images.listing import read_text
from gersp_mm.utils.errors import UserError

DOTA_CLASSES = DOTA.classes
LATER_CLASSES = ("container-crane", "airport", "helipad")  # classes of DOTA v1.5 and v2.0 only

HEADER = re.compile(r"\s*(imagesource|gsd|acquisition dates)\s*:", re.IGNORECASE)

Box = tuple[float, float, float, float]


class LabelledBox(NamedTuple):
    """One line of a label file."""

    corners: tuple[float, ...]  # x1 y1 x2 y2 x3 y3 x4 y4
    name: str
    difficulty: int | None  # None if the file has none

    @property
    def around(self) -> Box:
        """The horizontal box around the corners, as left, top, right, bottom."""
        xs, ys = self.corners[::2], self.corners[1::2]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def has_area(self) -> bool:
        """Whether the corners are not all on one line."""
        x, y = self.corners[:2]
        sides = [(u - x, v - y) for u, v in zip(self.corners[2::2], self.corners[3::2])]
        return any(a[0] * b[1] != a[1] * b[0] for a, b in itertools.combinations(sides, 2))


class CocoImage(NamedTuple):
    """An image and its horizontal boxes, in pixels."""

    id: int
    file_name: str
    width: int
    height: int
    boxes: list[tuple[int, str, Box]]  # annotation's id, class, left top right bottom


def read_labels(path: Path) -> list[LabelledBox]:
    """Read a file of lines ``x1 y1 x2 y2 x3 y3 x4 y4 class [difficulty]``.

    Header lines of DOTA's files, empty lines, repeated or trailing spaces, Windows line ends and
    byte-order marks are ignored.

    Raises:
        UserError: The file is not a text file, or a line has another form or an unknown class.
    """
    boxes = []
    for number, line in enumerate(read_text(path)[0].splitlines(), 1):
        fields = line.split()
        if not fields or HEADER.match(line):
            continue
        try:
            corners = tuple(map(float, fields[:8]))
            if len(fields) not in (9, 10) or not all(map(math.isfinite, corners)):
                raise ValueError
            difficulty = int(fields[9]) if len(fields) == 10 else None
        except ValueError:
            raise UserError(
                f"{path}, line {number}: {line.strip()!r} is not 8 coordinates, a class and a "
                "difficulty (a whole number)"
            ) from None
        name = fields[8]
        if name not in DOTA_CLASSES:
            hint = (
                "These are labels of DOTA v1.5 or v2.0. Use those of v1.0."
                if name in LATER_CLASSES
                else f"The known classes are {', '.join(DOTA_CLASSES)}."
            )
            raise UserError(f"{path}, line {number}: unknown class {name!r}. {hint}")
        boxes.append(LabelledBox(corners, name, difficulty))
    return boxes


def format_labels(boxes: Iterable[LabelledBox]) -> str:
    """Return the text of a label file, in the format of mmrotate's splitter and data sets."""
    return "".join(
        f"{' '.join(f'{c:.9g}' for c in box.corners)} {box.name} {box.difficulty or 0}\n"
        for box in boxes
    )


def clip_box(box: Box, width: float, height: float) -> Box:
    """Clip a horizontal box to the image.

    A box that lies outside the image comes back empty (right <= left, or bottom <= top).
    """
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def area_inside(corners: Sequence[float], width: float, height: float) -> float:
    """Return the area of the part of a box that lies in the image, in square pixels.

    Args:
        corners: x1 y1 x2 y2 … in either direction of rotation.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
    """
    points = list(zip(corners[::2], corners[1::2]))
    for axis, side, limit in ((0, 1, 0.0), (0, -1, width), (1, 1, 0.0), (1, -1, height)):
        kept: list[tuple[float, float]] = []
        for start, end in zip(points, points[1:] + points[:1]):
            a, b = side * (start[axis] - limit), side * (end[axis] - limit)
            if a >= 0:
                kept.append(start)
            if a * b < 0:
                share = a / (a - b)
                kept.append(
                    (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
                )
        points = kept
    turns = zip(points, points[1:] + points[:1])
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in turns)) / 2


def coco_text(classes: Sequence[str], images: Iterable[CocoImage]) -> str:
    """Return the text of a COCO file; categories are numbered from 1 in the order of classes."""
    numbers = {name: number for number, name in enumerate(classes, 1)}
    rows, annotations = [], []
    for image in images:
        rows.append(
            dict(id=image.id, file_name=image.file_name, width=image.width, height=image.height)
        )
        for identity, name, (left, top, right, bottom) in image.boxes:
            width, height = right - left, bottom - top
            annotations.append(
                dict(
                    id=identity,
                    image_id=image.id,
                    category_id=numbers[name],
                    bbox=[_plain(value) for value in (left, top, width, height)],
                    area=_plain(width * height),
                    iscrowd=0,
                )
            )
    categories = [dict(id=number, name=name) for name, number in numbers.items()]
    content = dict(images=rows, annotations=annotations, categories=categories)
    return json.dumps(content, separators=(",", ":"))


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value
