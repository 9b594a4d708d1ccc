"""Draw the nearest training images of some images, as several pre-trainings see them."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from gersp_mm.evaluation.features import EvalImages
from gersp_mm.utils.errors import UserError
from gersp_mm.visualization.features import (
    checked_backbones,
    class_names,
    features_of,
    follow_classes,
    hide_ticks,
    labelled_images,
    new_figure,
    save_figure,
    spaced,
)
from gersp_mm.visualization.panels import RIGHT, WRONG

CELL = 1.0  # Side of an image in inches.


def nearest(train: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    """Return the indices of the k most similar training features by the cosine, N×k."""
    keys = F.normalize(train, dim=1).T
    parts = [(F.normalize(part, dim=1) @ keys).topk(k, dim=1)[1] for part in queries.split(1024)]
    return torch.cat(parts)


def draw(
    queries: tuple[EvalImages, list[int]],
    train: EvalImages,
    found: dict[str, tuple[torch.Tensor, float]],
    names: dict[int, str],
    out: Path,
) -> None:
    """Draw the grid.

    Args:
        queries: The images, and which of them to draw.
        train: The training images.
        found: For each checkpoint the indices of the nearest training images, N×k, and the
            precision in per cent.
        names: Class name of each label.
        out: The png to write.
    """
    images, rows = queries
    k = next(iter(found.values()))[0].shape[1]
    gap = 0.25
    widths = [1.0]
    for _ in found:
        widths += [gap, *[1.0] * k]
    size = (CELL * sum(widths) + 1.2, CELL * len(rows) + 0.9)
    spaces = dict(width_ratios=widths, wspace=0.06, hspace=0.06)
    figure, axes = new_figure(len(rows), len(widths), size, layout=None, gridspec_kw=spaces)
    hide_ticks(axes)
    figure.subplots_adjust(
        left=1.1 / figure.get_figwidth(),
        right=1 - 0.1 / figure.get_figwidth(),
        top=1 - 0.5 / figure.get_figheight(),
        bottom=0.4 / figure.get_figheight(),
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows):
        image, label = images[row]
        show(line[0], image, "#444444")
        name = "\n".join(textwrap.wrap(spaced(names[label]), 13))
        beside = line[0].transAxes
        line[0].text(-0.08, 0.5, name, transform=beside, fontsize=8, ha="right", va="center")
        for number, (indices, _) in enumerate(found.values()):
            for place, index in enumerate(indices[row].tolist()):
                other, its_label = train[index]
                axis = line[2 + number * (k + 1) + place]
                show(axis, other, RIGHT if its_label == label else WRONG)
    for number, (name, (_, precision)) in enumerate(found.items()):
        first = axes[0, 2 + number * (k + 1)].get_position()
        last = axes[0, 1 + number * (k + 1) + k].get_position()
        figure.text(
            (first.x0 + last.x1) / 2,
            first.y1 + 0.06 / figure.get_figheight(),
            f"{name}\nprecision@{k} {precision:.1f} %",
            fontsize=9, ha="center", va="bottom",
        )  # fmt: skip
    axes[0, 0].set_title("image", fontsize=9)
    left = axes[-1, 0].get_position()
    height = 0.12 / figure.get_figheight()
    texts = [
        ("blue frame: of the image's class", RIGHT),
        ("vermilion frame: of another class", WRONG),
        (f"nearest on the left; precision@{k} is the mean over {len(images)} images", "#444444"),
    ]
    for (text, colour), start in zip(texts, (0, 2.3, 4.6)):
        place = left.x0 + start / figure.get_figwidth()
        figure.text(place, height, text, fontsize=8.5, color=colour)
    save_figure(figure, out)


def show(axis: Any, image: torch.Tensor, colour: str) -> None:
    """Show an image in a frame."""
    axis.axis("on")
    axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    for spine in axis.spines.values():
        spine.set(edgecolor=colour, linewidth=2.5)


def run(args: argparse.Namespace) -> None:
    """Draw the nearest training images of each image, by checkpoint."""
    backbones = checked_backbones(args)
    train = labelled_images(args.train, args.size, limit=args.train_limit)
    queries = labelled_images(args.images, args.size, limit=max(args.limit, args.rows))
    if args.k > len(train):
        raise UserError(f"--k {args.k} is more than the {len(train)} images of {args.train}")
    names = class_names(args.train, train)
    follow_classes(args.images, queries, names, args.train)
    found = {}
    for backbone in backbones:
        keys, labels = features_of(backbone, train, args, "training images")
        features, wanted = features_of(backbone, queries, args, "images")
        indices = nearest(keys, features, args.k)
        precision = (labels[indices] == wanted[:, None]).double().mean().item()
        found[backbone.name] = (indices, 100 * precision)
        print(f"{backbone.name}: precision@{args.k} {100 * precision:.1f} %, {len(queries)} images")
    rows = torch.linspace(0, len(queries) - 1, min(args.rows, len(queries))).round().long().tolist()
    draw((queries, rows), train, found, names, args.out)
    print(f"wrote {args.out}")
