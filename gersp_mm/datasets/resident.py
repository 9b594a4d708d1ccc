"""Images that stay on the training device, for which worker processes only handle numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gersp_mm.augmentation.draw import draw_view, pack
from gersp_mm.augmentation.view import ViewAugmentation
from gersp_mm.datasets.paired import PairedDataset
from gersp_mm.datasets.pipelines import Pipeline
from gersp_mm.datasets.reading import BadImage, DecodedImages
from gersp_mm.utils import console
from gersp_mm.utils.errors import UserError

VIEWS = {"remote_sensing": ("rs_query", "rs_key"), "natural": ("natural",)}  # of each source
PIPELINES = {"remote_sensing": "rs_pipeline", "natural": "natural_pipeline"}


@dataclass
class ResidentImages:
    """The images of a source without their pixels, used instead of :class:`DecodedImages`.

    Attributes:
        source: A dataset of mmpretrain's kind.
        shape: Height and width of every image in pixels.
        usable: For each image, its own number or that of the next readable image.
        bad: For each unreadable image, source, path and reason of all images up to the next
            readable one.
    """

    source: Any
    shape: tuple[int, int]
    usable: np.ndarray
    bad: dict[int, list[BadImage]]

    def read(self, index: int, bad: list[BadImage]) -> dict[str, Any]:
        """Return the source's data info of an image, with its ``shape`` and ``number``."""
        bad.extend(self.bad.get(index, ()))
        number = int(self.usable[index])
        return {**self.source.get_data_info(number), "shape": self.shape, "number": number}


class ResidentView:
    """The random draws of a view that the device crops; replaces a :class:`ViewAugmentation`."""

    takes_tensor = True

    def __init__(self, view: ViewAugmentation) -> None:
        self.view = view

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``results`` with ``draw`` and, as ``img``, a tensor without pixels."""
        height, width = results["shape"]
        draw = draw_view(height, width, self.view.parts)
        draw["image"] = results["number"]
        return {**results, "img": torch.empty((3, 0, 0), dtype=torch.uint8), "draw": pack(draw)}


def view_of(dataset: PairedDataset, name: str) -> ViewAugmentation:
    """Return the augmentation of a source.

    Raises:
        UserError: The pipeline is not a single :class:`ViewAugmentation`.
    """
    steps = getattr(dataset, PIPELINES[name]).transforms
    if len(steps) != 1 or not isinstance(steps[0], ViewAugmentation):
        raise UserError(
            f"DeviceImagesHook needs a pipeline of one ViewAugmentation for dataset.{name}, but it "
            f"has {[type(step).__name__ for step in steps]}. Remove the hook."
        )
    return steps[0]


def make_resident(
    dataset: PairedDataset, name: str, free: float, max_gib: float, progress: bool
) -> torch.Tensor:
    """Read all images of a source, and make the dataset leave the crops to the device.

    Args:
        dataset: Changed in place, before the worker processes start.
        name: ``'remote_sensing'`` or ``'natural'``.
        free: Largest memory of the images in GiB.
        max_gib: The whole budget, for messages.
        progress: Whether to show a progress bar.

    Returns:
        The K images, K×3×H×W uint8.

    Raises:
        UserError: The images need more memory, or have several sizes.
    """
    view, reader = view_of(dataset, name), dataset.readers[name]
    images, resident = _read_all(reader, free, max_gib, progress)
    dataset.readers[name] = resident
    setattr(dataset, PIPELINES[name], Pipeline(PIPELINES[name], [ResidentView(view)]))
    return images


def _read_all(
    reader: DecodedImages, free: float, max_gib: float, progress: bool
) -> tuple[torch.Tensor, ResidentImages]:
    name, count = reader.name, len(reader.source)
    if hasattr(reader.source, "read_window"):
        raise UserError(
            f"DeviceImagesHook keeps images, and {name} are windows that are drawn every time. "
            "Leave the hook out, or cut the scenes into tiles first"
        )
    images: torch.Tensor | None = None
    usable, bad = np.arange(count), {}
    for index in console.progress(range(count), f"keeping {name}", "image", shown=progress):
        reasons: list[BadImage] = []
        found = reader.read(index, reasons)
        pixels, usable[index] = found["img"], found["number"]
        if reasons:
            bad[index] = reasons
        if images is None:
            need = count * pixels.numel() / 2**30
            if need > free:
                raise UserError(
                    f"DeviceImagesHook: {count} images of {name} like {found['img_path']} need "
                    f"{need:.1f} GiB, {free:.1f} GiB of max_gib={max_gib:g} are left. Remove the "
                    "hook, or raise max_gib if the device has the memory."
                )
            images = torch.empty((count, *pixels.shape), dtype=torch.uint8)
        if pixels.shape != images.shape[1:]:
            raise UserError(
                f"DeviceImagesHook needs images of one size in {name}: {found['img_path']} has "
                f"{pixels.shape[2]}x{pixels.shape[1]} pixels, the first one "
                f"{images.shape[3]}x{images.shape[2]}. Remove the hook, or make all images one "
                "size first."
            )
        images[index] = pixels
    assert images is not None
    shape = (images.shape[2], images.shape[3])
    return images, ResidentImages(reader.source, shape, usable, bad)
