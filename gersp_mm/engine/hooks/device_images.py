"""Keeping all training images on the training device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook

from gersp_mm.augmentation.view import ViewAugmentation
from gersp_mm.datasets.paired import BadImage, KeptImages, PairedDataset
from gersp_mm.models.preprocessor import PairedDataPreprocessor
from gersp_mm.registry import HOOKS
from gersp_mm.utils import console
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class DeviceImagesHook(Hook):
    """Decode every image once, keep all of them on the device and cut the views out there.

    For data sets of small images that are gone through many times (EuroSAT and Tiny-ImageNet are
    2 GB), where reading them anew would keep a GPU waiting. Workers then only draw crops and
    colours, so two of them are plenty. The same seed gives the same views as without the hook, but
    for single grey levels. Every process keeps all images of its own.

    All images of a source must have one size, and its pipeline must be one
    :class:`gersp_mm.datasets.ViewAugmentation`.

    Args:
        max_gib: refuse sources that need more memory than this, together, in GiB.

    Raises:
        UserError: the dataset, its pipelines, the preprocessor or the images are of another kind,
            or need more memory.
    """

    priority = "LOW"  # after the checks of other hooks

    def __init__(self, max_gib: float = 16.0) -> None:
        check_number("DeviceImagesHook: max_gib", max_gib, above=0, such_as=16)
        self.max_gib = max_gib

    def before_train(self, runner: Any) -> None:
        """Read the images, before the worker processes start."""
        dataset = runner.train_dataloader.dataset
        model = unwrap(runner.model)
        preprocessor = model.data_preprocessor
        for part, kind in ((dataset, PairedDataset), (preprocessor, PairedDataPreprocessor)):
            if not isinstance(part, kind):
                raise UserError(
                    f"DeviceImagesHook needs a {kind.__name__}, this run has "
                    f"{type(part).__name__}: leave the hook out"
                )
        device = next(model.parameters()).device
        free = self.max_gib
        for name, pipeline in (
            ("remote_sensing", dataset.rs_pipeline),
            ("natural", dataset.natural_pipeline),
        ):
            if getattr(dataset, name) is None:
                continue
            steps = pipeline.transforms
            if len(steps) != 1 or not isinstance(steps[0], ViewAugmentation):
                raise UserError(
                    "DeviceImagesHook needs a pipeline of one ViewAugmentation for "
                    f"dataset.{name}, this one has {[type(step).__name__ for step in steps]}: "
                    "leave the hook out"
                )
            images, kept = self._read(dataset, name, free, progress=runner.rank == 0)
            free -= images.nbytes / 2**30
            preprocessor.keep(name, images.to(device), steps[0].size)
            dataset.keep(name, kept)
            runner.logger.info(
                f"{len(images)} images of {name} are kept on {device}: {images.nbytes / 2**20:.0f} "
                "MiB"
            )

    def _read(
        self, dataset: PairedDataset, name: str, free: float, progress: bool
    ) -> tuple[torch.Tensor, KeptImages]:
        count = len(getattr(dataset, name))
        images: torch.Tensor | None = None
        usable, bad = np.arange(count), {}
        for index in console.progress(range(count), f"keeping {name}", "img", shown=progress):
            reasons: list[BadImage] = []
            found = dataset.read_usable(name, index, reasons)
            pixels, usable[index] = found["img"], found["kept_as"]
            if reasons:
                bad[index] = reasons
            if images is None:
                need = count * pixels.numel() / 2**30
                if need > free:
                    raise UserError(
                        f"DeviceImagesHook: {count} images of {name} like {found['img_path']} need "
                        f"{need:.1f} GiB, {free:.1f} GiB of max_gib={self.max_gib:g} are left: "
                        "leave the hook out, or raise max_gib if the device has the memory"
                    )
                images = torch.empty((count, *pixels.shape), dtype=torch.uint8)
            if pixels.shape != images.shape[1:]:
                raise UserError(
                    f"DeviceImagesHook needs images of one size in {name}: {found['img_path']} has "
                    f"{pixels.shape[2]}x{pixels.shape[1]} pixels, the first one "
                    f"{images.shape[3]}x{images.shape[2]}; leave the hook out, or make all images "
                    "one size first"
                )
            images[index] = pixels
        assert images is not None
        return images, KeptImages(images.shape[2], images.shape[3], usable, bad)
