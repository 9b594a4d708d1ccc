"""Collation of pairs into one batch of few large tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from gersp_mm.registry import FUNCTIONS


@FUNCTIONS.register_module()
def collate_pairs(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples of :class:`gersp_mm.PairedDataset`.

    A worker process sends every tensor separately, so the labels of a batch become one tensor, and
    images keep their memory layout (channels last).

    Args:
        samples: N samples; their data samples are changed.

    Returns:
        ``inputs``, a dict of N×3×H×W uint8 tensors; ``data_samples``, N samples without labels;
        ``gt_label``, N int64 (if there are labels); and ``draw``, a dict of arrays on the host with
        the random draws of each view (if the device finishes the views).
        :class:`gersp_mm.PairedDataPreprocessor` puts the labels back.
    """
    data_samples = [sample["data_samples"] for sample in samples]
    batch: dict[str, Any] = dict(
        inputs={
            name: _stack_images([sample["inputs"][name] for sample in samples])
            for name in samples[0]["inputs"]
        },
        data_samples=data_samples,
    )
    if "gt_label" in data_samples[0]:
        batch["gt_label"] = torch.cat([sample.pop("gt_label") for sample in data_samples])
    if "draw" in samples[0]:
        names = samples[0]["draw"]
        batch["draw"] = {k: np.stack([sample["draw"][k] for sample in samples]) for k in names}
    return batch


def _stack_images(images: list[torch.Tensor]) -> torch.Tensor:
    """Stack 3×H×W images as N×3×H×W, channels last in memory."""
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
