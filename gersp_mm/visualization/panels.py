"""Lay out pictures of one image: panels of one size, headings above, notes and a legend below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

LONGEST = 1024  # Longest side of a panel in pixels.
DPI = 100
SMALLEST_PANEL = 3.2  # Inches.
ROW = 2  # Panels next to each other; text stays readable when the picture is shown smaller.
LETTER = 0.6  # Width of a letter, in sizes of its font.
LINE = 1.3  # Height of a line of text, in sizes of its font.

# Okabe and Ito's colours, which differ for colour-blind readers as well.
RIGHT, WRONG = "#0072b2", "#d55e00"
SERIES = (RIGHT, "#e69f00", "#009e73", "#cc79a7", "#56b4e9", WRONG, "#000000")


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a panel that shows an image, in pixels; it is never enlarged."""
    scale = min(1.0, LONGEST / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return width, height


def fill(text: str, inches: float, size: float) -> str:
    """Break text into lines of this width, in a font of ``size`` points."""
    letters = max(8, int(inches * 72 / (LETTER * size)))
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))


def draw_panels(
    panels: Mapping[str, Any],
    heading: str = "",
    notes: Sequence[str] = (),
    legend: Sequence[Any] = (),
    extent: tuple[float, float] | None = None,
) -> Any:
    """Return a figure of matplotlib with images of one size.

    Text has the size of a fortieth of a panel's width, at least 9 points, and is broken into lines
    so that it ends within its panel.

    Args:
        panels: Image of each panel by its title, RGB.
        heading: Text above all panels.
        notes: Text below each panel.
        legend: Handles with labels, drawn at the foot.
        extent: Width and height of the panels in data coordinates; pixels by default.
    """
    from matplotlib.figure import Figure

    first = next(iter(panels.values()))
    width, height = first.size
    side = max(SMALLEST_PANEL, width / DPI)
    size = max(9.0, side * 72 / 40)
    columns = min(ROW, len(panels))
    rows = -(-len(panels) // columns)
    titles = [fill(title, side, size) for title in panels]
    below = [fill(note, side, size * 0.8) for note in notes]
    heading = fill(heading, columns * side, size)
    longest = max((len(handle.get_label()) for handle in legend), default=0)
    entries = max(1, min(len(legend), int(columns * side * 72 / (size * (LETTER * longest + 4)))))
    lines = heading.count("\n") + 1.5 if heading else 0.0
    lines += -(-len(legend) // entries) + 1.5 if legend else 0.0
    lines += rows * (max(title.count("\n") for title in titles) + 1.8)
    lines += rows * 0.8 * max((note.count("\n") + 1 for note in below), default=0)
    figure = Figure(
        (columns * (side + 0.2), rows * side * height / width + lines * LINE * size / 72),
        DPI,
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, title, image in zip(axes.flat, titles, panels.values()):
        wide, high = extent or image.size
        axis.imshow(image, interpolation="nearest", extent=(0, wide, high, 0))
        axis.set_title(title, fontsize=size)
        axis.set_xticks([])
        axis.set_yticks([])  # The frame stays: a class may be white.
    for axis, note in zip(axes.flat, below):
        axis.set_xlabel(note, fontsize=size * 0.8)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    if heading:
        figure.suptitle(heading, fontsize=size)
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=entries, fontsize=size)
    return figure
