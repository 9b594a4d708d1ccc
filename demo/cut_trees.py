#!/usr/bin/env python3
"""Cut the annotated demo scenes into tiles, with the boxes of their trees as COCO files.

The script works in the folder that `python demo/prepare_demo.py` creates:

  data/demo/scenes/{images,annotations}/   read: four scenes, Pascal VOC boxes
  data/demo/trees/{train,test}/            written: tiles of about 200 x 200 px (20 x 20 m)
  data/demo/trees/coco/{train,test}.json   written: the one category is `tree`

Training and test tiles come from the areas that prepare_demo.py keeps apart, so neither
pre-training nor training has seen a pixel of a test tile. Test tiles lie next to each other and
cover the test areas once; training tiles overlap by half, so that a tree that one tile cuts is
whole in another tile. Boxes are clipped to the tile; the rest of a tree is dropped if it is
narrower than 8 px or less than a third of the tree. A second run writes the same files.

Examples:
  python demo/cut_trees.py data/demo
"""

from __future__ import annotations

import argparse
import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from prepare_demo import AREAS, JPEG, Area

from gersp_mm.commands.options import run_tool
from gersp_mm.datasets.dota import CocoImage, coco_text
from gersp_mm.preparation.common import warn
from gersp_mm.utils.arguments import new_parser
from gersp_mm.utils.console import progress, table
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import replacing, write_text

SIDE = 200  # px
STRIDES = dict(train=SIDE // 2, test=SIDE)
MIN_SIDE = 8  # px, as the smallest annotated trees
MIN_SHARE = 1 / 3


def read_boxes(path: Path) -> np.ndarray:
    """Return the boxes of a Pascal VOC file as N×4 left, upper, right and lower edges.

    Pascal VOC holds the first and the last pixel of a box and counts from 1. Only one scene
    distinguishes dead from living trees, so the names are not used.

    Raises:
        UserError: The file cannot be read, or has a box without extent or with an infinite edge.
    """
    names = ("xmin", "ymin", "xmax", "ymax")
    try:
        root = ElementTree.parse(path).getroot()
        boxes = [
            [float(box.findtext(name, "")) for name in names]
            for box in root.iterfind("object/bndbox")
        ]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not a Pascal VOC annotation: {error}") from None
    edges = np.array(boxes, dtype=float).reshape(-1, 4) - [1, 1, 0, 0]
    whole = np.isfinite(edges).all(1) & (edges[:, 2:] > edges[:, :2]).all(1)
    if not whole.all():
        raise UserError(f"{path}: object {np.flatnonzero(~whole)[0] + 1} has a box without extent")
    return edges


def inside_scene(boxes: np.ndarray, shape: Sequence[int], path: Path) -> np.ndarray:
    """Remove boxes that lie outside the scene and thus in no tile, and warn of them.

    Args:
        boxes: N×4 edges in the scene.
        shape: Height and width of the scene in pixels.
        path: Annotation file, for the warning.
    """
    height, width = shape[:2]
    inside = (boxes[:, :2] < [width, height]).all(1) & (boxes[:, 2:] > 0).all(1)
    if not inside.all():
        numbers = [number + 1 for number in np.flatnonzero(~inside)]
        warn(f"{path}: boxes outside the scene, left out: objects {listed(numbers)}")
    return boxes[inside]


def spread(start: int, end: int, side: int, stride: int) -> list[tuple[int, int]]:
    """Cover ``start`` to ``end`` evenly with pieces of about ``side``, about ``stride`` apart.

    Returns:
        First and last edge of every piece; the first begins at ``start``, the last ends at ``end``.
    """
    length = end - start
    pieces = max(1, round((length - side) / stride) + 1)
    step = length / (pieces - 1 + side / stride)
    width = length - step * (pieces - 1)
    return [
        (round(start + step * number), round(start + step * number + width))
        for number in range(pieces)
    ]


def tiles_of(area: Area, side: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Return the edges (left, upper, right, lower) of an area's tiles, row by row."""
    return [
        (left, top, right, bottom)
        for top, bottom in spread(area.top, area.bottom, side, stride)
        for left, right in spread(area.left, area.right, side, stride)
    ]


def clip_boxes(boxes: np.ndarray, tile: Sequence[int]) -> tuple[np.ndarray, int]:
    """Clip boxes to a tile.

    Args:
        boxes: N×4 edges in the scene.
        tile: Left, upper, right and lower edge of the tile.

    Returns:
        M×4 edges in the tile, and the number of rests that were dropped as too small.
    """
    left, top, right, bottom = tile
    clipped = np.clip(boxes, [left, top, left, top], [right, bottom, right, bottom])
    sides = clipped[:, 2:] - clipped[:, :2]
    touched = (sides > 0).all(1)
    share = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = touched & (sides >= MIN_SIDE).all(1) & (share >= MIN_SHARE)
    return clipped[kept] - [left, top, left, top], int(touched.sum() - kept.sum())


def cut_area(
    pixels: np.ndarray, boxes: np.ndarray, area: Area, out: Path
) -> Iterator[tuple[tuple[str, int, int], np.ndarray, int]]:
    """Write the tiles of an area.

    Yields:
        File, width and height of a tile, its M×4 edges of boxes, and the dropped remains.
    """
    for tile in tiles_of(area, SIDE, STRIDES[area.part]):
        left, top, right, bottom = tile
        name = f"{area.part}/{area.scene}_x{left:04d}_y{top:04d}.jpg"
        with replacing(out / name) as temporary:
            Image.fromarray(pixels[top:bottom, left:right]).save(temporary, "JPEG", **JPEG)
        yield (name, right - left, bottom - top), *clip_boxes(boxes, tile)


def cut_scenes(data: Path) -> list[tuple[str, str, int, int, int]]:
    """Cut all annotated scenes of a demo folder.

    Returns:
        Rows of part, scene, number of tiles, boxes and dropped remains.

    Raises:
        UserError: A scene is missing, damaged or of another size.
    """
    annotations = sorted((data / "scenes" / "annotations").glob("*.xml"))
    if not annotations:
        raise UserError(
            f"{data}/scenes/annotations holds no .xml: run python demo/prepare_demo.py first, and "
            "name the folder that it made"
        )
    out = data / "trees"
    counts = []
    coco: dict[str, list[CocoImage]] = {part: [] for part in STRIDES}
    ids = {part: itertools.count(1) for part in STRIDES}
    for path in progress(annotations, "cutting", "scene"):
        boxes = read_boxes(path)
        image = data / "scenes" / "images" / f"{path.stem}.png"
        try:
            with Image.open(image) as opened:
                pixels = np.asarray(opened.convert("RGB"))
        except OSError as error:
            raise UserError(f"scene {image} cannot be read: {error}") from None
        boxes = inside_scene(boxes, pixels.shape, path)
        for area in (area for area in AREAS if area.scene == path.stem):
            if area.right > pixels.shape[1] or area.bottom > pixels.shape[0]:
                raise UserError(f"scene {image} is smaller than its {area.part} area: {area}")
            images, lost = [], 0
            for number, (file, edges, dropped) in enumerate(cut_area(pixels, boxes, area, out), 1):
                found = [(next(ids[area.part]), "tree", tuple(box)) for box in edges.tolist()]
                images.append(CocoImage(len(coco[area.part]) + number, *file, found))
                lost += dropped
            coco[area.part] += images
            trees = sum(len(image.boxes) for image in images)
            counts.append((area.part, area.scene, len(images), trees, lost))
    for part, content in coco.items():
        write_text(out / "coco" / f"{part}.json", coco_text(("tree",), content))
    return sorted(counts, key=lambda row: (list(STRIDES).index(row[0]), row[1]))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("data", type=Path, help="folder of demo/prepare_demo.py, e.g. data/demo")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Cut the scenes, and print a table of the tiles."""
    rows = cut_scenes(args.data)
    for part in STRIDES:
        sums = [sum(row[i] for row in rows if row[0] == part) for i in (2, 3, 4)]
        rows.append((part, "all", *sums))
    header = ("area", "tiles", "trees in tiles", "dropped remains")
    print(table(header, [(f"{part}, {scene}", *rest) for part, scene, *rest in rows]))


if __name__ == "__main__":
    run_tool(main, parse_args())
