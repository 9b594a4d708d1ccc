"""Backbones, images and figures of the tools that draw features of several backbones."""

from __future__ import annotations

import argparse
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gersp_mm.backbones.named import Backbone, load_backbones
from gersp_mm.backbones.own import import_modules
from gersp_mm.evaluation.features import EvalImages, extract_features
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import remove_temporaries, replacing


def checked_backbones(args: argparse.Namespace) -> list[Backbone]:
    """Check the arguments that these tools share and build the networks.

    ``args.device`` becomes a ``torch.device``.

    Raises:
        UserError: A number is too small, the device is not there, or a file does not fit.
    """
    for name in ("size", "batch_size", "limit", "train_limit", "rows", "k"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.seed < 0:
        raise UserError(f"--seed must not be negative, got {args.seed}")
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        args.device = torch.device(name)
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--device {name} cannot be used: {reason}") from None
    import_modules(args.imports)
    return load_backbones(args.checkpoints, args.device, args.seed)


def features_of(
    backbone: Backbone, images: EvalImages, args: argparse.Namespace, what: str = "features"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and labels of images, see :func:`gersp_mm.evaluation.extract_features`.

    Raises:
        UserError: The network fails, as transformers do on sizes that they are not made for.
    """
    images.pixel_scale = backbone.pixel_scale
    try:
        return extract_features(
            backbone.network,
            images,
            mean=backbone.mean,
            std=backbone.std,
            device=args.device,
            batch_size=args.batch_size,
            progress=f"{backbone.name}, {what}",
        )
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{backbone.name} fails on images of {args.size} pixels ({reason}): try another --size"
        ) from error


def labelled_images(source: Path, size: int, limit: int | None = None) -> EvalImages:
    """Read a folder of classes or a list, see :class:`gersp_mm.evaluation.EvalImages`.

    Paths in a list may also be relative to a folder above that of the list, as in the splits that
    the converters write: the nearest one that has the first image is taken.
    """
    images = EvalImages(source, size, limit=limit)
    first = Path(str(images.samples[0][0]))
    if source.is_file() and not first.exists() and first.is_relative_to(source.parent):
        inside = first.relative_to(source.parent)
        root = next((folder for folder in source.parents if (folder / inside).exists()), None)
        if root is not None:
            images.samples = [
                (str(root / Path(path).relative_to(source.parent)), label)
                for path, label in _samples(images)
            ]
    return images


def class_names(source: str | os.PathLike, images: EvalImages) -> dict[int, str]:
    """Return the name of every label: that of its folder, or ``class 3`` where that says nothing.

    Args:
        source: Folder or list that the images were read from.
        images: Images that were read.
    """
    folders: dict[int, set[str]] = defaultdict(set)
    for path, label in _samples(images):
        whole = Path(path)
        inside = whole.relative_to(source).parts[0] if os.path.isdir(source) else whole.parent.name
        folders[label].add(inside)
    names = {label: next(iter(own)) for label, own in folders.items() if len(own) == 1}
    telling = len(names) == len(folders) == len(set(names.values()))
    return {label: names[label] if telling else _unnamed(label) for label in sorted(folders)}


def _unnamed(label: int) -> str:
    return f"class {label}"


def follow_classes(
    source: str | os.PathLike, images: EvalImages, names: Mapping[int, str], train: Any
) -> None:
    """Give images the labels that the training images of the same class have.

    Args:
        source: Folder or list that the images were read from.
        images: Changed in place.
        names: Class name of each label of the training images.
        train: Folder or list of the training images, for the message.

    Raises:
        UserError: A class is none of the training images'.
    """
    numbers = {name: label for label, name in names.items()}
    labels = {}
    for label, name in class_names(source, images).items():
        unnamed = name == _unnamed(label) or names.get(label) == _unnamed(label)
        if name in numbers:
            labels[label] = numbers[name]
        elif unnamed and label in names:
            labels[label] = label
        else:
            raise UserError(
                f"{source} has images of {name}, which is no class of {train} "
                f"({listed(names.values(), 3)})"
            )
    images.samples = [(path, labels[label]) for path, label in _samples(images)]


def _samples(images: EvalImages) -> Iterator[tuple[str, int]]:
    return ((str(path), int(label)) for path, label in images.samples)


def spaced(name: str) -> str:
    """Write a class name in words: ``AnnualCrop`` and ``annual_crop`` become ``annual crop``.

    A name in capitals alone, as ``SOAP_031``, keeps them.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " "))
    return words if words.isupper() else words.lower()


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the name of a class in words, or its number where there is no name.

    Args:
        classes: Names of the classes.
        label: Number of the class.
    """
    return spaced(str(classes[label])) if label < len(classes) else _unnamed(label)


def new_figure(
    rows: int, columns: int, size: tuple[float, float], layout: Any = "constrained", **options: Any
) -> tuple[Any, Any]:
    """Return a figure of matplotlib, which needs no display, and its axes, rows×columns.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        size: Width and height in inches.
        layout: See ``matplotlib.figure.Figure``.
        options: See ``Figure.subplots``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def hide_ticks(axes: Any) -> None:
    """Draw no ticks on these axes, an array."""
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])


def save_figure(figure: Any, out: Path, dpi: int = 110) -> None:
    """Write a figure of matplotlib as a png, whole or not at all.

    Temporary files of earlier calls whose process was killed are deleted.
    """
    remove_temporaries(out.parent, out.name)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
