"""From collated uint8 batches to normalised tensors on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor

from gersp_mm.constants import RGB_MEAN, RGB_STD
from gersp_mm.registry import MODELS


@MODELS.register_module()
class PairedDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the device and normalise its images, whatever their names.

    ``inputs`` may be one N×3×H×W tensor or a dict of them; all are RGB with values 0 to 255.
    Normalisation runs in fp32, also under autocast.

    Args:
        mean: per-channel mean in RGB order, in the range 0 to 255.
        std: per-channel standard deviation in RGB order, in the range 0 to 255.
        non_blocking: copy to the device without waiting, for pinned batches.
    """

    def __init__(
        self,
        mean: Sequence[float] = RGB_MEAN,
        std: Sequence[float] = RGB_STD,
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking)
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return ``data`` on the device with every image of ``data['inputs']`` as fp32."""
        data = self.cast_data(data)
        inputs = data["inputs"]
        if isinstance(inputs, dict):
            inputs = {name: self._normalise(images) for name, images in inputs.items()}
        else:
            inputs = self._normalise(inputs)
        return {**data, "inputs": inputs}

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return images.to(self.mean.dtype).sub(self.mean).div_(self.std)
