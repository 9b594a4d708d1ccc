"""Conversion of collated uint8 batches to normalised tensors on the training device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor

from gersp_mm.augmentation.device import KeptImages, crop_batch, recolour_batch
from gersp_mm.augmentation.draw import unpack
from gersp_mm.constants import CHANNEL_ORDER, RGB_MEAN, RGB_STD
from gersp_mm.registry import MODELS
from gersp_mm.utils.errors import UserError, check_number


@MODELS.register_module()
class PairedDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the device, finish its augmentation there and normalise its images.

    ``inputs`` may be one N×3×H×W tensor or a dict of them; all are RGB with values 0 to 255.
    Normalisation runs in fp32, even under autocast. The preprocessor does not wait for the device.

    Args:
        mean: Per-channel mean in RGB order, in the range 0 to 255.
        std: Per-channel standard deviation in RGB order, in the range 0 to 255.
        non_blocking: Copy to the device without waiting, for pinned batches.

    Raises:
        UserError: ``mean`` or ``std`` is not one finite number per channel, a number of ``std`` is
            not above 0, or they are meant for pixel values of 0 to 1.
    """

    channel_order = CHANNEL_ORDER

    def __init__(
        self,
        mean: Sequence[float] = RGB_MEAN,
        std: Sequence[float] = RGB_STD,
        non_blocking: bool = True,
    ) -> None:
        for name, numbers in (("mean", mean), ("std", std)):
            if not isinstance(numbers, Sequence) or isinstance(numbers, str) or len(numbers) != 3:
                raise UserError(
                    f"{name} cannot be {numbers!r}. Set it to three numbers, one per channel."
                )
        for number in mean:
            check_number("mean", number, 0, 255, such_as=list(RGB_MEAN))
        for number in std:
            check_number("std", number, above=0, such_as=list(RGB_STD))
        if max(std) < 1:
            raise UserError(
                f"std={list(std)} is meant for pixel values of 0 to 1, but images have 0 to 255. "
                "Multiply mean and std by 255."
            )
        super().__init__(non_blocking)
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.kept: dict[str, KeptImages] = {}  # by view; checkpoints do not hold them

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return ``data`` on the device with every image of ``data['inputs']`` as fp32.

        Args:
            data: A batch of :func:`gersp_mm.datasets.collate_pairs`, or of one of MMEngine's
                collate functions.
            training: Not used.

        Returns:
            ``inputs``, and ``data_samples`` with their labels on the device.

        Raises:
            UserError: The images are not collated into one tensor for each name.
        """
        _check_batch(data)
        data = dict(data)
        draws = {name: unpack(rows) for name, rows in data.pop("draw", {}).items()}
        labels = data.pop("gt_label", None)
        if labels is None:
            data = self.cast_data(data)
        else:  # The samples hold no tensors.
            samples = data.pop("data_samples")
            data, labels = self.cast_data((data, labels))
            for sample, label in zip(samples, labels.split(1)):
                sample.set_gt_label(label)
            data["data_samples"] = samples
        inputs = data["inputs"]
        if isinstance(inputs, dict):
            inputs = {
                name: self._finish(images, draws.get(name), self.kept.get(name))
                for name, images in inputs.items()
            }
        else:
            inputs = self._finish(inputs)
        return {**data, "inputs": inputs}

    def _finish(
        self, images: torch.Tensor, draws: Any = None, kept: KeptImages | None = None
    ) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            if draws is not None:
                if kept is not None:
                    images = crop_batch(kept.images, draws, kept.size)
                images = recolour_batch(images, draws)
            return images.to(self.mean.dtype).sub(self.mean).div_(self.std)


def _check_batch(data: Any) -> None:
    """Raise a :class:`UserError` unless the images of a batch are tensors of four dimensions."""
    found = type(data).__name__
    if isinstance(data, Mapping):
        inputs = data.get("inputs")
        images = inputs.values() if isinstance(inputs, Mapping) else [inputs]
        wrong = [x for x in images if not isinstance(x, torch.Tensor) or x.ndim != 4]
        if not wrong and "inputs" in data:
            return
        found = f"inputs of {type(wrong[0]).__name__}" if wrong else "no inputs"
        if wrong and isinstance(wrong[0], torch.Tensor):
            found = f"inputs of shape {tuple(wrong[0].shape)}"
    raise UserError(
        f"a batch needs N×3×H×W tensors in `inputs`, but this one is or has {found}. Build the "
        "data loader with collate_fn=gersp_mm.collate_pairs."
    )


@MODELS.register_module()
class TwoViewDataPreprocessor(PairedDataPreprocessor):
    """A preprocessor that returns the two remote-sensing views as a list, as mmpretrain expects.

    BYOL, SimSiam and MoCo v3 use it with a :class:`gersp_mm.PairedDataset` without natural images.
    """

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return ``inputs`` as [query views, key views], each N×3×H×W and normalised."""
        data = super().forward(data, training)
        return {**data, "inputs": [data["inputs"]["rs_query"], data["inputs"]["rs_key"]]}
