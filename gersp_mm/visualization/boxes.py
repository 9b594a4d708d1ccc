"""Draw annotated boxes and the boxes of several detectors next to each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gersp_mm.visualization.features import hide_ticks, new_figure, save_figure

TRUTH = "annotated"
IOU = 0.5  # Smallest IoU of a hit, as in AP50.
ANNOTATED, HIT, MISS = "yellow", "cyan", "red"


def hits(found: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]) -> list[bool]:
    """Say of each predicted box whether it is a hit, as COCO's AP50 counts them.

    Each takes the annotated box of the largest IoU that no earlier one has taken.

    Args:
        found: Boxes (left, top, width, height) in the order of their scores, the highest first.
        truth: Annotated boxes.
    """
    import torch
    from torchvision.ops import box_convert, box_iou

    first, second = (
        box_convert(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), "xywh", "xyxy")
        for boxes in (found, truth)
    )
    overlaps = box_iou(first, second)
    told = []
    for row in range(len(found)):
        best = int(overlaps[row].argmax()) if truth else -1
        told.append(bool(truth) and bool(overlaps[row, best] >= IOU))
        if told[-1]:
            overlaps[:, best] = 0
    return told


def draw_scenes(
    coco: Mapping[str, Any],
    images: Path,
    predictions: Mapping[str, Path],
    threshold: float,
    out: Path,
) -> None:
    """Draw the most crowded image of every scene: its annotation, then each detector's boxes.

    Boxes that find an object are of another colour than those that do not, see :func:`hits`.

    Args:
        coco: Annotations in COCO's format. A file is called ``<scene>_x<left>_y<top>``.
        images: Folder that the file names of ``coco`` start from.
        predictions: File in COCO's result format for each detector.
        threshold: Predictions with a higher score are drawn.
        out: The png to write.
    """
    from matplotlib.patches import Patch, Rectangle
    from PIL import Image

    boxes = {TRUTH: list(coco["annotations"])}
    for name, path in predictions.items():
        found = json.loads(path.read_text(encoding="utf-8"))
        boxes[name] = [entry for entry in found if entry["score"] > threshold]
    counts = Counter(entry["image_id"] for entry in coco["annotations"])
    crowded = {
        Path(image["file_name"]).stem.split("_x")[0]: image
        for image in sorted(coco["images"], key=lambda image: counts[image["id"]])
    }
    size = (3 * len(boxes), 3.2 * len(crowded) + 0.5)
    figure, axes = new_figure(len(crowded), len(boxes), size)
    hide_ticks(axes)
    for row, (scene, image) in zip(axes, sorted(crowded.items())):
        with Image.open(images / image["file_name"]) as opened:
            pixels = opened.convert("RGB")
        for axis, (name, entries) in zip(row, boxes.items()):
            drawn = sorted(
                (entry for entry in entries if entry["image_id"] == image["id"]),
                key=lambda entry: -entry.get("score", 1),
            )
            corners = [entry["bbox"] for entry in drawn]
            axis.imshow(pixels)
            if name == TRUTH:
                truth = corners
                colours, text = [ANNOTATED] * len(truth), f"{name}: {len(truth)}"
            else:
                found = hits(corners, truth)
                colours = [HIT if hit else MISS for hit in found]
                text = f"{name}: {sum(found)} of {len(truth)} found, {found.count(False)} false"
            for (left, top, width, height), colour in zip(corners, colours):
                axis.add_patch(Rectangle((left, top), width, height, fill=False, color=colour))
            if not corners:
                axis.text(
                    0.5, 0.5, "no box", transform=axis.transAxes, ha="center", va="center",
                    fontsize=9, bbox=dict(facecolor="white", edgecolor="none", alpha=0.8),
                )  # fmt: skip
            axis.set_title(text, fontsize=9)
        row[0].set_ylabel(scene, fontsize=9)
    figure.suptitle(
        f"The most crowded test tile of each scene; predictions above a score of {threshold:g}",
        fontsize=10,
    )
    legend = {
        "annotated": ANNOTATED,
        f"finds one (IoU at least {IOU:g})": HIT,
        "false: finds none, or one that is found": MISS,
    }
    handles = [Patch(fill=False, edgecolor=colour, label=text) for text, colour in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    save_figure(figure, out)
