"""Training images kept on the training device."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook

from gersp_mm.augmentation.device import KeptImages
from gersp_mm.datasets.paired import PairedDataset
from gersp_mm.datasets.resident import VIEWS, make_resident, view_of
from gersp_mm.models.preprocessor import PairedDataPreprocessor
from gersp_mm.registry import HOOKS
from gersp_mm.utils.errors import UserError, check_number
from gersp_mm.utils.model import unwrap


@HOOKS.register_module()
class DeviceImagesHook(Hook):
    """Decode every image once, keep all images on the device and crop the views there.

    This suits data sets of small images that are read many times, such as EuroSAT with
    Tiny-ImageNet (2 GB), where decoding would keep a GPU waiting. Workers then only draw crops and
    colours, so two suffice. The same seed gives the same views as without the hook, up to single
    grey levels. Every process keeps a copy of all images.

    All images of a source must have one size, and its pipeline must be one
    :class:`gersp_mm.datasets.ViewAugmentation`.

    Args:
        max_gib: Largest memory of both sources together, in GiB.

    Raises:
        UserError: The dataset, its pipelines, the preprocessor or the images do not have this
            form, or need more memory.
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
                    f"DeviceImagesHook needs a {kind.__name__}, but this run has a "
                    f"{type(part).__name__}. Remove the hook."
                )
        device = next(model.parameters()).device
        free = self.max_gib
        for name in dataset.readers:
            size = view_of(dataset, name).size
            progress = runner.rank == 0
            images = make_resident(dataset, name, free, self.max_gib, progress)
            free -= images.nbytes / 2**30
            kept = KeptImages(images.to(device), size)
            preprocessor.kept.update(dict.fromkeys(VIEWS[name], kept))
            runner.logger.info(
                f"{len(images)} images of {name} are kept on {device}: {images.nbytes / 2**20:.0f} "
                "MiB"
            )
