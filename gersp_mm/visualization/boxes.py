"""Draw annotated and predicted boxes next to each other, and tell which are right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image

from gersp_mm.utils.errors import counted
from gersp_mm.visualization.features import class_name, hide_ticks, new_figure, save_figure
from gersp_mm.visualization.panels import draw_panels, shown_size

TRUTH = "annotated"
IOU = 0.5  # Smallest IoU of a hit, as in AP50.
# Bright, and of different lightness for colour-blind readers; PLAIN is neither right nor wrong.
ANNOTATED, HIT, FALSE, PLAIN = "#f0e442", "#00ffff", "#ff5a36", "#ffffff"
WIDTH = 1.5  # Of a line, in points.
OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=WIDTH + 1.5, foreground="#202020")]
PAD = 1.5  # Around a label, in points.
HIDDEN = 0.05  # Largest share of a box that a label may cover.


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        corners: Columns and rows of the corners in pixels, in order around the box, N×4×2.
        labels: Numbers of the classes, N.
        scores: Scores from 0 to 1, N; None for annotated boxes.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    @classmethod
    def of(cls, instances: Any, threshold: float | None = None) -> Boxes:
        """Read what a host holds of an image, the highest score first.

        Args:
            instances: ``InstanceData`` of mmdet or mmrotate with upright boxes (left, top, right,
                bottom), rotated ones (centre, width, height, radians) or four corners.
            threshold: Leave out boxes of this score or a lower one.
        """
        boxes = getattr(instances.bboxes, "tensor", instances.bboxes).detach().cpu().double()
        corners, labels = corners_of(boxes.numpy()), instances.labels.cpu().numpy()
        if "scores" not in instances:
            return cls(corners, labels)
        scores = instances.scores.detach().cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > threshold] if threshold is not None else order
        return cls(corners[order], labels[order], scores[order])

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.corners)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return the corners, N×4×2, of boxes in the forms of :meth:`Boxes.of`."""
    if boxes.shape[-1] == 8:
        return boxes.reshape(-1, 4, 2)
    if boxes.shape[-1] == 4:
        return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    centre, (width, height, angle) = boxes[:, None, :2], boxes[:, 2:].T
    along = np.stack([width * np.cos(angle), width * np.sin(angle)], 1)[:, None] / 2
    across = np.stack([-height * np.sin(angle), height * np.cos(angle)], 1)[:, None] / 2
    return centre + np.concatenate(
        [-along - across, along - across, along + across, across - along], axis=1
    )


def of_coco(entries: Iterable[Mapping[str, Any]]) -> Boxes:
    """Return boxes in COCO's format (left, top, width, height), the highest score first."""
    ordered = sorted(entries, key=lambda entry: -entry.get("score", 1))
    boxes = np.array([entry["bbox"] for entry in ordered], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([entry.get("category_id", 0) for entry in ordered], int)
    return Boxes(corners_of(boxes), labels)


def overlaps(first: Boxes, second: Boxes) -> np.ndarray:
    """Return the IoU of all pairs of boxes, N×M; of any four corners, by their convex hulls."""
    import cv2

    table = np.zeros((len(first), len(second)))
    (low1, high1), (low2, high2) = (
        (boxes.corners.min(1), boxes.corners.max(1)) for boxes in (first, second)
    )
    near = (low1[:, None] < high2) & (low2 < high1[:, None])
    for row, column in np.argwhere(near.all(2)):
        pair = [first.corners[row], second.corners[column]]
        one, other = (cv2.convexHull((c - pair[0][0]).astype(np.float32)) for c in pair)
        shared = cv2.intersectConvexConvex(one, other)[0]
        whole = cv2.contourArea(one) + cv2.contourArea(other) - shared
        table[row, column] = shared / whole if whole > 0 else 0
    return table


def hits(found: Boxes, truth: Boxes) -> list[bool]:
    """Say of each predicted box whether it is a hit, as COCO's AP50 counts them.

    Each takes the annotated box of its class and of the largest IoU that no earlier one has taken.

    Args:
        found: Predicted boxes in the order of their scores, the highest first.
        truth: Annotated boxes.
    """
    return [number is not None for number in matches(found, truth)]


def matches(found: Boxes, truth: Boxes) -> list[int | None]:
    """Return the number of the annotated box that each predicted one finds, see :func:`hits`."""
    table = overlaps(found, truth)
    table[found.labels[:, None] != truth.labels[None]] = 0
    taken: list[int | None] = []
    for row in table:
        best = int(row.argmax()) if len(truth) else -1
        hit = bool(len(truth)) and bool(row[best] >= IOU - 1e-6)  # Of rounding.
        taken.append(best if hit else None)
        if hit:
            table[:, best] = 0
    return taken


def draw_detections(
    image: Image.Image,
    truth: Boxes | None,
    found: Boxes,
    classes: Sequence[str],
    heading: str = "",
    others: Boxes | None = None,
) -> Any:
    """Return a figure: annotated boxes on the left, predicted ones on the right.

    Colours tell right and wrong predictions. A label is written where it neither leaves the frame
    nor hides a box, and left out where there is no such place; the numbers of each class stand
    below the panels.

    Args:
        image: RGB.
        truth: Annotated boxes; None where the data set has no annotations.
        found: Predicted boxes, the highest score first.
        classes: Names of the classes.
        heading: Text above the panels.
        others: Annotated boxes that do not count, such as difficult ones. A prediction that finds
            one of them is neither right nor wrong.
    """
    none = Boxes(np.zeros((0, 4, 2)), np.zeros(0, int))
    known, truth, others = truth is not None, truth or none, others or none
    finds = matches(found, truth)
    near = (overlaps(found, others) >= IOU - 1e-6) & (found.labels[:, None] == others.labels)
    plain = near.any(1) if known else np.ones(len(found), bool)
    states = [
        HIT if number is not None else PLAIN if left else FALSE
        for number, left in zip(finds, plain)
    ]
    missed = np.setdiff1d(np.arange(len(truth)), [n for n in finds if n is not None])
    if known:
        titles = (
            f"truth: {counted(len(truth), 'object')}",
            f"prediction: {len(truth) - len(missed)} of {len(truth)} found, "
            f"{states.count(FALSE)} false",
        )
    else:
        titles = ("image, without truth", f"prediction: {counted(len(found), 'object')}")
    entries: tuple[tuple[str, str, Any, Any], ...] = (
        ("truth", ANNOTATED, "-", len(truth)),
        ("truth that is not found", ANNOTATED, "--", len(missed)),
        ("right prediction", HIT, "-", HIT in states),
        (f"false: class, place (IoU < {IOU:g}) or found twice", FALSE, "-", FALSE in states),
        ("does not count" if known else "prediction", PLAIN, "-", len(others) or PLAIN in states),
    )
    legend = [
        Line2D(
            [], [], color=colour, linestyle=style, linewidth=WIDTH, label=text, path_effects=OUTLINE
        )
        for text, colour, style, used in entries
        if used
    ]
    several = len(classes) > 1
    names = [class_name(classes, label) for label in truth.labels.tolist()]
    guesses = [class_name(classes, label) for label in found.labels.tolist()]
    figure = draw_panels(
        dict.fromkeys(titles, image.resize(shown_size(image))),
        heading,
        class_counts(names, guesses, states, known) if several else (),
        legend,
        image.size,
    )
    left, right = figure.axes
    draw_boxes(left, others.corners, [PLAIN] * len(others))
    draw_boxes(left, truth.corners, [ANNOTATED] * len(truth))
    draw_boxes(right, truth.corners[missed], [ANNOTATED] * len(missed), "--")
    draw_boxes(right, found.corners, states)
    if known and not len(truth) + len(others):
        say(left, "nothing annotated")
    if not len(found):
        say(right, "nothing found")
    figure.draw_without_rendering()  # The layout of the panels is settled while drawing.
    figure.set_layout_engine("none")
    drawn = np.concatenate([truth.corners, others.corners])
    if several:
        place_labels(left, truth.corners, names, [ANNOTATED] * len(truth), drawn)
    if found.scores is not None:
        texts = [
            f"{name} {score:.2f}" if several else f"{score:.2f}"
            for name, score in zip(guesses, found.scores)
        ]
        place_labels(right, found.corners, texts, states, np.concatenate([drawn, found.corners]))
    return figure


def class_counts(
    names: Sequence[str], guesses: Sequence[str], states: Sequence[str], known: bool
) -> tuple[str, str]:
    """Return the numbers of each class below the two panels of :func:`draw_detections`.

    Args:
        names: Class of each annotated box.
        guesses: Class of each predicted box.
        states: Colour of each predicted box.
        known: Whether the data set has annotations.
    """
    there, all_found = Counter(names), Counter(guesses)
    told = Counter(zip(guesses, states))
    left = ", ".join(f"{name} {number}" for name, number in sorted(there.items()))
    if not known:
        return left, ", ".join(f"{name} {number}" for name, number in sorted(all_found.items()))
    right = []
    for name in sorted(there | all_found):
        parts = [f"{told[name, HIT]} of {there[name]}"] if there[name] else []
        parts += [f"{told[name, FALSE]} false"] if told[name, FALSE] else []
        if parts:
            right.append(f"{name} {' and '.join(parts)}")
    return left, ", ".join(right)


def draw_boxes(
    axis: Any, corners: np.ndarray, colours: Sequence[str], linestyle: str = "-"
) -> None:
    """Draw the outlines of boxes, with a dark rim so that they stand out on any ground.

    Args:
        axis: The panel.
        corners: Corners in the panel's coordinates, N×4×2.
        colours: Colour of each box.
        linestyle: Style of all lines.
    """
    for box, colour in zip(corners, colours):
        outline = Polygon(box, fill=False, edgecolor=colour, linewidth=WIDTH, linestyle=linestyle)
        outline.set_zorder(outline.get_zorder() + (colour == HIT))  # Not below false ones.
        outline.set_path_effects(OUTLINE)
        axis.add_patch(outline)


def say(axis: Any, text: str) -> None:
    """Write in the middle of a panel that there is nothing to draw."""
    axis.text(
        0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center",
        fontsize=axis.title.get_fontsize(),
        bbox=dict(facecolor="white", edgecolor="none", alpha=0.85),
    )  # fmt: skip


def place_labels(
    axis: Any,
    corners: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[str],
    drawn: np.ndarray,
) -> None:
    """Write labels beside boxes, where they stay in the frame and hide neither boxes nor labels.

    The layout of the figure has to be settled. A label without such a place is left out.

    Args:
        axis: The panel.
        corners: Corners of the labelled boxes, N×4×2, the most important first.
        texts: Label of each box.
        colours: Colour of each label.
        drawn: Corners of all boxes, M×4×2; of each a label covers at most ``HIDDEN``.
    """
    scale = axis.figure.dpi / 72
    frame = axis.get_window_extent().extents
    boxes, taken = _extents(axis, drawn), np.zeros((0, 4))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).clip(min=1)
    rim, gap = PAD * scale, (WIDTH + 1) * scale
    for (left, low, right, high), text, colour in zip(_extents(axis, corners), texts, colours):
        label = axis.text(
            0, 0, text, fontsize=0.75 * axis.title.get_fontsize(), color=colour, va="bottom",
            bbox=dict(facecolor="black", alpha=0.75, edgecolor="none", pad=PAD),
        )  # fmt: skip
        extent = label.get_window_extent()
        width, height = extent.width + 2 * rim, extent.height + 2 * rim
        above, below = high + gap, low - gap - height
        for x, y in (
            (left, above), (left, below), (right - width, above), (right - width, below),
            (right + gap, high - height), (left - gap - width, high - height),
            (left + gap, high - gap - height),
        ):  # fmt: skip
            place = np.array([x, y, x + width, y + height])
            if (
                (place[:2] >= frame[:2]).all()
                and (place[2:] <= frame[2:]).all()
                and (_shared(place, boxes) <= HIDDEN * areas).all()
                and not _shared(place, taken).any()
            ):
                label.set_position(axis.transData.inverted().transform((x + rim, y + rim)))
                taken = np.vstack([taken, place])
                break
        else:
            label.remove()


def _extents(axis: Any, corners: np.ndarray) -> np.ndarray:
    """Return left, lower, right and upper end of boxes in the figure's pixels, N×4."""
    shown = axis.transData.transform(corners.reshape(-1, 2)).reshape(-1, 4, 2)
    return np.concatenate([shown.min(1), shown.max(1)], axis=1)


def _shared(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    sides = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    return sides.clip(min=0).prod(1)


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
            drawn = of_coco(entry for entry in entries if entry["image_id"] == image["id"])
            axis.imshow(pixels, extent=(0, pixels.width, pixels.height, 0))
            if name == TRUTH:
                truth = drawn
                colours, text = [ANNOTATED] * len(truth), f"{name}: {len(truth)}"
            else:
                found = hits(drawn, truth)
                colours = [HIT if hit else FALSE for hit in found]
                text = f"{name}: {sum(found)} of {len(truth)} found, {found.count(False)} false"
            draw_boxes(axis, drawn.corners, colours)
            axis.set_title(text, fontsize=9)
            if not len(drawn):
                say(axis, "nothing annotated" if name == TRUTH else "nothing found")
        row[0].set_ylabel(scene, fontsize=9)
    figure.suptitle(
        f"The most crowded test tile of each scene; predictions above a score of {threshold:g}",
        fontsize=10,
    )
    legend = {
        "annotated": ANNOTATED,
        f"finds one (IoU at least {IOU:g})": HIT,
        "false: finds none, or one that is found": FALSE,
    }
    handles = [
        Line2D([], [], color=colour, linewidth=WIDTH, label=text, path_effects=OUTLINE)
        for text, colour in legend.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    save_figure(figure, out)
